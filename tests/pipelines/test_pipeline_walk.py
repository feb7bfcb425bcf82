"""The walk of docs/your-pipeline.md on a tiny pipeline in a folder."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from forked import Server
from parsing import parse
from tiny_pipelines import wan

from osp_opt.options import COMMANDS

pytest.importorskip("accelerate")  # without it diffusers loads no Wan

PAGE = Path(__file__).parents[2] / "docs" / "your-pipeline.md"
LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for line in block.splitlines()
    if line.startswith("osp-opt")
]


@pytest.mark.parametrize("line", LINES)
def test_the_documented_lines_are_understood(line: str) -> None:
    _, command, *arguments = shlex.split(line)
    assert parse(command, shlex.join(arguments)).command == command
    assert command in COMMANDS


def test_three_commands_one_after_the_other(tmp_path: Path, server: Server) -> None:
    """Two processes record what one would; what is found is used by the next command."""
    pipe, arguments = wan()
    pipe.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "call.yaml").write_text(yaml.safe_dump(arguments))

    def run(command: str, *more: str) -> str:
        flags = ("--pipeline", "pipeline", "--pipeline-args", "call.yaml", "--device", "cpu")
        return server.line(command, *flags, *more, current=tmp_path)

    run("calibrate", "--prompt", "a", "--prompt", "b", "--steps", "9", "--nproc-per-node", "2")
    run("search-steps", "--steps", "4", "--no-verify", "--force")
    said = run("sample", "--prompt", "a fox")
    assert "using osp-opt-work/search-steps/searched_schedule.txt" in said
    manifest = json.loads((tmp_path / "osp-opt-work" / "samples" / "manifest.json").read_text())
    assert len(manifest["takes"][0]["setting"]["timesteps"]) == 4
