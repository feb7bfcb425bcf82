"""What the README shows is true: its commands parse, its code runs, its files exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from parsing import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
COMMANDS = [line for line in SHELL.splitlines() if line.startswith("osp-opt ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, command, *args = shlex.split(line, comments=True)
    assert parse(command, shlex.join(args)).command == command


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_code_runs(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_there_is_something_to_test() -> None:
    assert len(COMMANDS) >= 9


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", SHELL, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
