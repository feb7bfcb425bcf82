"""The command line: the subcommands, each with what runs it (no torch)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import typer
import typer.main

from osp_opt import __version__
from osp_opt.base.terminal import report_error
from osp_opt.cli.config_file import field_spellings, suggest
from osp_opt.cli.flags import Commands, OptionsCommand, add_command, dashed
from osp_opt.options import (
    COMMANDS,
    DoctorOptions,
    EvaluateOptions,
    ExportOptions,
    JobOptions,
    Options,
    ReportOptions,
)
from osp_opt.system.host import importing

USAGE_EXIT_CODE = 2
INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells have it
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]

app = typer.Typer(
    name="osp-opt",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={
        "token_normalize_func": dashed,
        "help_option_names": ["-h", "--help"],
    },
    help="Make Open-Sora-Plan v1.2 sample faster: fewer steps, cached blocks, the same videos.",
    epilog="A first tour, on the bundled model: calibrate, search-steps, search-cache, sample.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"osp-opt {__version__}")
        raise typer.Exit


@app.callback()
def _global_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Version.")
    ] = False,
) -> None:
    """Options before the subcommand."""


def _launch(options: JobOptions) -> int:
    from osp_opt.run.launch import launch  # not needed for --help

    return launch(options)


def _evaluate(options: EvaluateOptions) -> int:
    from osp_opt.evaluate.files import open_takes

    # Before torch is loaded, which takes seconds: what is missing is said at once.
    takes = open_takes(options)
    with importing():
        from osp_opt.evaluate.job import run

    return run(options, *takes)


def _report(options: ReportOptions) -> int:
    from osp_opt.report.runs import folders_to_report

    folders = folders_to_report(options)  # as above
    with importing():
        from osp_opt.report.job import run

    return run(options, folders)


def _export(options: ExportOptions) -> int:
    from osp_opt.cli.export import run

    return run(options)


def _doctor(options: DoctorOptions) -> int:
    from osp_opt.cli.doctor import run

    return run(options)


_HERE: dict[type[Options], Callable[[Any], int]] = {
    EvaluateOptions: _evaluate,
    ReportOptions: _report,
    ExportOptions: _export,
    DoctorOptions: _doctor,
}
"""What runs a command in this process; all others have workers."""

for _model in COMMANDS.values():
    add_command(app, _model, _HERE.get(_model, _launch))


@cache
def _commands() -> Any:
    """What typer makes of the app, once in a process: some hundred options each time."""
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``osp-opt`` with ``argv`` (default: the process's own) and return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        os.getcwd()
    except OSError as error:  # removed meanwhile; paths, torch and MKL all need one
        report_error(f"the current folder is gone ({error.strerror}); cd to another one")
        return USAGE_EXIT_CODE
    try:
        code = _commands().main(args, prog_name="osp-opt", standalone_mode=False)
    except _UsageError as error:
        report_error(_usage_line(error))
        return USAGE_EXIT_CODE
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED_EXIT_CODE
    return code if isinstance(code, int) else 0


def _usage_line(error: Exception) -> str:
    """One line for a flag or subcommand that does not exist, naming the nearest that does."""
    context = getattr(error, "ctx", None)
    unknown = str(getattr(error, "option_name", ""))
    message = str(getattr(error, "message", error)).rstrip(".")
    if context is None:
        return message
    if isinstance(context.command, OptionsCommand) and message.startswith("No such option"):
        return _unknown_flag(
            context.command, f"{context.command_path}: no option {unknown}", unknown
        )
    return f"{message} (see {context.command_path} --help)"


def _unknown_flag(command: OptionsCommand, text: str, flag: str) -> str:
    """``text`` with the nearest flag there is, or the subcommands that do have this one."""
    name = dashed(flag).removeprefix("--").replace("-", "_")
    owners = [other for other, model in COMMANDS.items() if name in field_spellings(model)]
    if owners:
        return f"{text}; it is an option of {', '.join(owners)}"
    # Dashes, which all have in common, would make anything look alike.
    known = [*map(dashed, field_spellings(command.model)), "config", "help", "help-all"]
    return text + suggest(dashed(name), known, "--")
