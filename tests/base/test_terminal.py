"""Text of others is shown by the terminal, never obeyed."""

from __future__ import annotations

import pytest
from rich.markup import escape
from rich.table import Table

from osp_opt.base.progress import Progress
from osp_opt.base.terminal import make_console, note, report_error, visible
from osp_opt.cli.app import main

STEERING = "a\x1b]0;title\x07\x1b[2Jb\r\x08\x7f\x9b31m\u202ec"
SHOWN = r"\x1b]0;title"


def test_every_way_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Progress(0, interactive=False).say(STEERING)
    with Progress(0, interactive=True).task("work", 1) as task:
        task._progress.say(STEERING)
    report_error(STEERING)
    note(STEERING)
    console = make_console()
    table = Table(title=escape(STEERING))
    table.add_row(escape(STEERING))
    console.print(table)
    console.print(escape(STEERING), soft_wrap=True)
    assert main(["sample", "--device", STEERING]) == 2
    assert main(["sample", STEERING]) == 2
    assert main([STEERING]) == 2
    out, err = capsys.readouterr()
    assert out.count(SHOWN) == 5
    assert err.count(SHOWN) == 5
    for text in (out, err):
        assert not set(text) & set("\x07\x08\x7f\x9b\u202e")
        assert "\x1b]" not in text
        assert "\x1b[2J" not in text


@pytest.mark.parametrize("text", ["a red ball", "ein roter Ball", "一个红球", "\u0643\u0631\u0629"])
def test_what_is_harmless_stays(text: str) -> None:
    assert visible(text) == text
    assert visible(f"{text}\n{text}") == f"{text}\n{text}"
