"""Options models become Typer commands: flags, help panels, ``--config`` (no torch).

Every flag value reaches the model as text and is checked there, so that a flag and a key of the
configuration file obey the same rules and fail with the same words.
"""

from __future__ import annotations

import copy
import inspect
import signal
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import typer
import typer.core
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from osp_opt.base.errors import OptionError, OspOptError, naming_files
from osp_opt.base.terminal import report_error
from osp_opt.cli.config_file import field_spellings, read_config, suggest
from osp_opt.options.base import PANELS, Options, Texts, flag_of, option_extra

OptionsT = TypeVar("OptionsT", bound=Options)

_CONFIG_HELP = "YAML file with values for options; flags override it."
_GO_ON = "run the same command again to go on"
_NO = "no__"
_ALL = "osp_opt.help_all"
_VERBOSITY = "verbosity__"
_OptionalFlag = bool | None
_SWITCHES = {
    "quiet": ("-q", "Tell the result only."),
    "verbose": ("-v", "Tell details, too."),
    "json": ("--json", "Print the result as JSON, and nothing else on stdout."),
}
"""Short forms of --verbosity, by its value: flag and help."""
_BASIC_METAVARS: Mapping[Any, str] = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


def dashed(name: str) -> str:
    """A name with dashes for underscores, which mean the same everywhere."""
    return name.replace("_", "-")


class PlainFlags:
    """Mixed into a command: its switches are shown without a type, since they take no value."""

    def get_params(self, ctx: Any) -> list[Any]:
        params = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            if getattr(param, "is_flag", False):
                param.metavar = ""
        return params


class Commands(PlainFlags, typer.core.TyperGroup):
    """The group of all commands."""


class OptionsCommand(PlainFlags, typer.core.TyperCommand):
    """A command for one options model.

    Flags may be spelled with underscores or by an old name, and a list may follow one flag.
    """

    model: ClassVar[type[Options]]

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        spellings = {
            dashed(spelling): dashed(name) for spelling, name in field_spellings(self.model).items()
        }

        def primary(flag: str) -> str:
            return spellings.get(dashed(flag), dashed(flag))

        extra.setdefault("token_normalize_func", primary)
        return super().make_context(info_name, args, *rest, **extra)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The common options, with an example; all of them where ``--help-all`` was asked for."""
        if ctx.meta.get(_ALL) or not self.model.common:
            super().format_help(ctx, formatter)
            return
        short = copy.copy(self)
        by_name = {param.name: param for param in self.params}
        switches = [_VERBOSITY + name for name in _SWITCHES]
        names = (*self.model.common, "config", *switches)
        common = [_folded(by_name[name], self.model) for name in names]
        short.params = [*common, by_name["help_all"]]
        more = len(self.model.model_fields) - len(self.model.common)
        short.epilog = (
            f"{more} more options, and other names of these: {ctx.command_path} --help-all\n\n"
            f"Example: {ctx.command_path} {self.model.example}"
        )
        super(OptionsCommand, short).format_help(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        lists = {param.name for param in self.params if getattr(param, "multiple", False)}
        spellings = field_spellings(self.model).items()
        many = {flag_of(spelling) for spelling, name in spellings if name in lists}
        return super().parse_args(ctx, _repeat_flags(args, many))


def add_command(app: typer.Typer, model: type[Options], run: Callable[[Any], int]) -> None:
    """Register ``run(options) -> exit code`` as the subcommand ``model.command``.

    The model's docstring is the command's help. An OspOptError ends the process with the
    error's exit code and its one line on stderr, with the traceback before it under ``--debug``;
    Ctrl-C ends it with one line too.
    """

    def command(**values: Any) -> None:
        config = values.pop("config")
        values.pop("help_all")
        wanted = [name for name in _SWITCHES if values.pop(_VERBOSITY + name)]
        given = _given(values)
        if wanted:
            given["verbosity"] = wanted[-1]
        try:
            with naming_files():
                code = run(resolve(model, given, None if config is None else Path(config)))
        except OspOptError as error:
            if given.get("debug"):
                traceback.print_exc()
            report_error(str(error))
            code = error.exit_code
        except KeyboardInterrupt:
            print(f"osp-opt: stopped; {_GO_ON}", file=sys.stderr)
            code = 128 + signal.SIGINT
        raise typer.Exit(code)

    # Typer reads parameters from the signature, here made from the model.
    parameters = _parameters(model)
    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {item.name: item.annotation for item in parameters}
    own_class = type("ModelCommand", (OptionsCommand,), {"model": model})
    app.command(model.command, cls=own_class, help=model.__doc__)(command)


def resolve(model: type[OptionsT], given: Mapping[str, Any], config: Path | None) -> OptionsT:
    """The options: ``given`` flags over the values in ``config`` over defaults.

    Raises OptionError naming the flag (or the file's key) at fault, FileError for the file.
    """
    filed = {} if config is None else read_config(model, config)
    try:
        return model(**{**filed, **given})
    except ValidationError as error:
        raise OptionError(_explain(model, error, given, config)) from error


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """What was really on the command line; ``--no-x`` (hidden in the help) is x = False."""
    given = {name: value for name, value in values.items() if value not in (None, [], ())}
    for name in [name for name in given if name.startswith(_NO)]:
        del given[name]
        given[name.removeprefix(_NO)] = False
    return given


def _parameters(model: type[Options]) -> list[inspect.Parameter]:
    fields = sorted(
        model.model_fields.items(), key=lambda item: PANELS.index(option_extra(item[1])["panel"])
    )
    made = [parameter for name, field in fields for parameter in _field_parameters(name, field)]
    config = typer.Option("--config", help=_CONFIG_HELP, metavar="FILE", rich_help_panel="Run")
    made.append(_keyword("config", Annotated[str | None, config]))
    for value, (flag, text) in _SWITCHES.items():
        names = [flag] if flag.startswith("--") else [f"--{value}", flag]
        switch = typer.Option(*names, help=text, metavar="", rich_help_panel="Run")
        made.append(_keyword(_VERBOSITY + value, Annotated[_OptionalFlag, switch]))
    everything = typer.Option(
        "--help-all",
        help="Show every option.",
        metavar="",
        is_eager=True,
        callback=_show_all,
    )
    made.append(_keyword("help_all", Annotated[_OptionalFlag, everything]))
    return made


def _show_all(ctx: typer.Context, wanted: bool | None) -> None:
    if wanted:
        ctx.meta[_ALL] = True
        print(ctx.get_help())
        raise typer.Exit


def _folded(param: Any, model: type[Options]) -> Any:
    """An option as the short help shows it: in one panel, without longer names for it."""
    shown = copy.copy(param)
    shown.rich_help_panel = None
    if param.name in model.model_fields:
        shown.help = _help(param.name, model.model_fields[param.name], all_names=False)
    return shown


def _field_parameters(name: str, field: FieldInfo) -> list[inspect.Parameter]:
    extra = option_extra(field)
    settings: dict[str, Any] = {
        "help": _help(name, field),
        "rich_help_panel": extra["panel"],
        "show_default": False,
    }
    if bool in _alternatives(field.annotation):
        on = typer.Option(flag_of(name), metavar="", **settings)
        names = [flag_of(each) for each in ("no_" + name, extra["off"]) if each]
        off = typer.Option(*names, hidden=True, show_default=False)
        return [
            _keyword(name, Annotated[_OptionalFlag, on]),
            _keyword(_NO + name, Annotated[_OptionalFlag, off]),
        ]
    settings["metavar"] = extra["metavar"] or _metavar(field.annotation)
    kind: Any = list[str] | None if field.annotation == typing.get_args(Texts)[0] else str | None
    if extra["positional"]:
        del settings["rich_help_panel"]  # typer puts arguments into a panel of their own
        return [_keyword(name, Annotated[kind, typer.Argument(**settings)])]
    flags = [flag_of(name), *([f"-{extra['short']}"] if extra["short"] else [])]
    return [_keyword(name, Annotated[kind, typer.Option(*flags, **settings)])]


def _help(name: str, field: FieldInfo, *, all_names: bool = True) -> str:
    """The description with unit, default and other names (at least shorter ones), for rich."""
    extra = option_extra(field)
    notes = [extra["unit"]] if extra["unit"] else []
    if field.default not in (None, False, ()):
        default = field.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        notes.append(f"default {shown}")
    if extra["off"]:
        notes.append("off " + flag_of(extra["off"]))
    others = [alias for alias in extra["aliases"] if all_names or len(alias) < len(name)]
    if others:
        notes.append("also " + ", ".join(map(flag_of, others)))
    text = field.description or ""
    return (f"{text} [{'; '.join(notes)}]" if notes else text).replace("[", r"\[")


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _metavar(annotation: Any) -> str:
    for part in _alternatives(annotation):
        if typing.get_origin(part) is Literal:
            return "|".join(map(str, typing.get_args(part)))
        if part in _BASIC_METAVARS:
            return _BASIC_METAVARS[part]
    return "VALUE"


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def _repeat_flags(args: list[str], many: set[str]) -> list[str]:
    """``--text-prompt A B`` as ``--text-prompt A --text-prompt B``, for the flags in ``many``."""
    result: list[str] = []
    flag: str | None = None
    taken = False
    for position, arg in enumerate(args):
        if dashed(arg) in many:
            flag, taken = arg, False
        elif flag is not None and taken and not arg.startswith("-"):
            result.append(flag)
        elif flag is not None and taken:
            flag = None
        elif flag is not None:
            taken = True
        elif arg == "--":
            return result + args[position:]
        result.append(arg)
    return result


def _explain(
    model: type[Options], error: ValidationError, given: Mapping[str, Any], config: Path | None
) -> str:
    """The first thing wrong, in one line that starts with the flag or the file's key."""
    problem = error.errors(include_url=False)[0]
    message = str(problem["msg"]).removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    if name not in given:  # a value may have been given by an older name for the same thing
        name = next((key for key, value in given.items() if value == problem["input"]), name)
    if problem["type"] == "extra_forbidden":
        return f"{flag_of(name)}: unknown option{suggest(name, model.model_fields)}"
    where = _named(model, name) if name in given or config is None else f"config {config}: {name}"
    context = problem.get("ctx", {})
    if problem["type"] == "literal_error":
        choices = str(context["expected"]).replace("'", "")
        near = suggest(str(problem["input"]), choices.replace(" or ", ", ").split(", "))
        message = f"must be {choices}{near}"
    message = message.replace("Input should be", "must be")
    unit = option_extra(model.model_fields[name]).get("unit")
    if unit and "must be" in message and unit not in message:
        message += f" ({unit})"
    value = given.get(name, problem["input"])
    return f"{where} {_shortened(value)}: {message}"


def _named(model: type[Options], name: str) -> str:
    """An option's flag; of an argument the word that stands for it in the help."""
    extra = option_extra(model.model_fields[name])
    return str(extra["metavar"]) if extra["positional"] else flag_of(name)


def _shortened(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
