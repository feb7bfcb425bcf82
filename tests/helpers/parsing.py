"""Parse a command line as the real one is parsed, and hand back the options."""

from __future__ import annotations

import shlex

import typer
import typer.main

from osp_opt.cli.flags import add_command
from osp_opt.options import COMMANDS, Options


def parse(command: str, line: str) -> Options:
    """The options that ``osp-opt COMMAND LINE`` would run with."""
    caught: list[Options] = []
    app = typer.Typer()

    def run(options: Options) -> int:
        caught.append(options)
        return 0

    add_command(app, COMMANDS[command])(run)
    code = typer.main.get_command(app).main(shlex.split(line), standalone_mode=False)
    assert code == 0, f"{command} {line} ended with {code}"
    return caught[0]
