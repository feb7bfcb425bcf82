"""Parse a command line as the real one is parsed, and hand back the options."""

from __future__ import annotations

import shlex
from functools import cache
from typing import Any

import typer
import typer.main

from osp_opt.cli.flags import add_command
from osp_opt.options import COMMANDS, Options


def parse(command: str, line: str) -> Options:
    """The options that ``osp-opt COMMAND LINE`` would run with."""
    parser, caught = _parser(command)
    code = parser.main(shlex.split(line), standalone_mode=False)
    assert code == 0, f"{command} {line} ended with {code}"
    return caught.pop()


@cache
def _parser(command: str) -> tuple[Any, list[Options]]:
    """The command as typer makes it, and where it puts its options."""
    caught: list[Options] = []
    app = typer.Typer()

    def run(options: Options) -> int:
        caught.append(options)
        return 0

    add_command(app, COMMANDS[command], run)
    return typer.main.get_command(app), caught
