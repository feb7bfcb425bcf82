"""Progress speaks on rank 0 only, in plain lines where there is no terminal."""

from __future__ import annotations

import pytest

from osp_opt.base.progress import Progress


def work(progress: Progress) -> None:
    with progress.task("prompts", total=2) as outer:
        for _ in range(2):
            with progress.task("steps", total=3) as inner:
                for _ in range(3):
                    inner.advance()
            outer.advance()
            progress.say("one [video] more")


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    work(Progress(0, interactive=False))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "prompts (2)"
    assert [line for line in lines if line.startswith("steps: 3/3")] == lines[2:7:3]
    assert lines.count("one [video] more") == 2
    assert lines[-1].startswith("prompts: 2/2, ")


def test_bars_on_a_terminal_keep_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(0, interactive=True)
    work(progress)
    work(progress)
    assert capsys.readouterr().out.count("one [video] more") == 4


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    work(Progress(1, interactive=True))
    assert capsys.readouterr().out == ""


def test_a_failed_task_is_not_called_finished(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyError), Progress(0, interactive=False).task("steps", 3):
        raise KeyError
    assert capsys.readouterr().out == "steps (3)\n"
