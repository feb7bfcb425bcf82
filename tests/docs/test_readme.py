"""What the README and the pages it was cut into show is true: commands parse, code runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from parsing import parse

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/library.md", "docs/released-checkpoints.md", "docs/choosing.md")
TEXT = "\n".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
SHELL = "\n".join(re.findall(r"```(?:bash|console)\n(.*?)```", TEXT, re.DOTALL))
LINES = [line.removeprefix("$ ") for line in SHELL.replace("\\\n", " ").splitlines()]
COMMANDS = [line for line in LINES if line.startswith("osp-opt ")]
MOST_LINES = 150  # of a README: the rest is for docs/


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, command, *args = shlex.split(line, comments=True)
    assert parse(command, shlex.join(args)).command == command


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
def test_code_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_there_is_something_to_test() -> None:
    assert len(COMMANDS) >= 15


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_a_readme_is_short(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", SHELL, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
