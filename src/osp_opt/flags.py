"""Options models become Typer commands: flags, help panels, ``--config`` (no torch).

Every flag value reaches the model as text and is checked there, so that a flag and a key of the
configuration file obey the same rules and fail with the same words.
"""

from __future__ import annotations

import difflib
import inspect
import sys
import traceback
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer
import typer.core
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from osp_opt.artifacts import read_bytes
from osp_opt.errors import FileError, OptionError, OspOptError
from osp_opt.options.base import PANELS, Options, Texts, option_extra

OptionsT = TypeVar("OptionsT", bound=Options)

CONFIG_MAX_BYTES = 2**20
_CONFIG_HELP = "YAML file with values for options; flags override it."
_BASIC_METAVARS: Mapping[Any, str] = {int: "N", float: "X", Path: "PATH", str: "TEXT"}


def kebab(name: str) -> str:
    """``num_frames`` as it stands on the command line: ``--num-frames``."""
    return "--" + name.replace("_", "-")


class OptionsCommand(typer.core.TyperCommand):
    """A command whose flags may be spelled with underscores and whose lists may follow one flag."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> Any:
        extra.setdefault("token_normalize_func", lambda name: name.replace("_", "-"))
        return super().make_context(info_name, args, *rest, **extra)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        many = {
            name
            for param in self.params
            if getattr(param, "multiple", False)
            for name in param.opts
        }
        return super().parse_args(ctx, _repeat_flags(args, many))


def add_command(
    app: typer.Typer, model: type[OptionsT]
) -> Callable[[Callable[[OptionsT], int]], Callable[[OptionsT], int]]:
    """Decorator: register ``run(options) -> exit code`` as the subcommand ``model.command``.

    The function's docstring is the command's help. An OspOptError ends the process with the
    error's exit code and its one line on stderr, with the traceback before it under ``--debug``.
    """

    def register(run: Callable[[OptionsT], int]) -> Callable[[OptionsT], int]:
        def command(**values: Any) -> None:
            config = values.pop("config")
            given = {name: value for name, value in values.items() if value not in (None, [], ())}
            try:
                code = run(resolve(model, given, Path(config) if config else None))
            except OspOptError as error:
                if given.get("debug"):
                    traceback.print_exc()
                report_error(str(error))
                code = error.exit_code
            raise typer.Exit(code)

        # Typer reads parameters from the signature, here made from the model.
        parameters = _parameters(model)
        vars(command)["__signature__"] = inspect.Signature(parameters)
        command.__annotations__ = {item.name: item.annotation for item in parameters}
        app.command(model.command, cls=OptionsCommand, help=run.__doc__)(command)
        return run

    return register


def report_error(text: str) -> None:
    """The one line that a user sees when something went wrong."""
    print(f"osp-opt: error: {' '.join(text.split())}", file=sys.stderr)


def resolve(model: type[OptionsT], given: Mapping[str, Any], config: Path | None) -> OptionsT:
    """The options: ``given`` flags over the values in ``config`` over defaults.

    Raises OptionError naming the flag (or the file's key) at fault, FileError for the file.
    """
    filed = {} if config is None else read_config(model, config)
    try:
        return model(**{**filed, **given})
    except ValidationError as error:
        raise OptionError(_explain(model, error, given, config)) from error


def read_config(model: type[Options], path: Path) -> dict[str, Any]:
    """Values for the fields of ``model`` from a YAML mapping.

    Keys are option names, with dashes or underscores, or old names. A key that is the name of a
    subcommand holds values for that one only. Raises OptionError for unknown or doubled keys,
    FileError when the file is no plain YAML mapping.
    """
    from osp_opt.options import COMMANDS

    names = _field_names(model)
    values: dict[str, Any] = {}
    content = _read_yaml(path)
    sections = {key: value for key, value in content.items() if str(key) in COMMANDS}
    own = sections.get(model.command) or {}
    if not isinstance(own, dict):
        raise FileError(f"config {path}: {model.command} must hold a mapping of options")
    general = {key: value for key, value in content.items() if key not in sections}
    for part in (general, own):
        seen: set[str] = set()
        for key, value in part.items():
            field = names.get(str(key).replace("-", "_"))
            if field is None:
                hint = suggest(str(key).replace("-", "_"), names)
                raise OptionError(f"config {path}: unknown key {key!r}{hint}")
            if field in seen:
                raise OptionError(f"config {path}: {field} is given twice, as {key!r} too")
            seen.add(field)
            values[field] = value
    return {name: value for name, value in values.items() if value is not None}


def suggest(word: str, known: typing.Iterable[str]) -> str:
    """``; did you mean X?`` when one of ``known`` is near ``word``, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.55)
    return f"; did you mean {near[0]}?" if near else ""


def _field_names(model: type[Options]) -> dict[str, str]:
    """Every spelling (underscores) of every field, to the field's name."""
    return {
        spelling: name
        for name, field in model.model_fields.items()
        for spelling in (name, *option_extra(field).get("aliases", ()))
    }


def _read_yaml(path: Path) -> dict[Any, Any]:
    import yaml

    data = read_bytes(path, "config", CONFIG_MAX_BYTES)
    try:
        # Aliases can make a small file expand without bound; presets need none.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(data, yaml.SafeLoader)):
            raise FileError(f"config {path}: YAML aliases (*name) are not allowed")
        content = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FileError(f"config {path}: not valid YAML ({' '.join(str(error).split())})") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FileError(f"config {path}: must be a mapping of option names to values")
    return content


def _parameters(model: type[Options]) -> list[inspect.Parameter]:
    fields = sorted(
        model.model_fields.items(), key=lambda item: PANELS.index(option_extra(item[1])["panel"])
    )
    config = typer.Option("--config", help=_CONFIG_HELP, metavar="FILE", rich_help_panel="Run")
    made = [_parameter(name, field) for name, field in fields]
    made.append(_keyword("config", Annotated[str | None, config]))
    return made


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    extra = option_extra(field)
    flags = [kebab(spelling) for spelling in (name, *extra["aliases"])]
    text = field.description or ""
    if extra["unit"]:
        text += f" [{extra['unit']}]"
    settings: dict[str, Any] = {
        "help": text.replace("[", r"\["),
        "rich_help_panel": extra["panel"],
        "show_default": _shown_default(field.default),
    }
    if field.annotation is bool or bool in typing.get_args(field.annotation):
        flags[0] += "/--no-" + flags[0].removeprefix("--")
        return _keyword(name, Annotated[bool | None, typer.Option(*flags, **settings)])
    settings["metavar"] = extra["metavar"] or _metavar(field.annotation)
    if field.annotation == typing.get_args(Texts)[0]:
        return _keyword(name, Annotated[list[str] | None, typer.Option(*flags, **settings)])
    return _keyword(name, Annotated[str | None, typer.Option(*flags, **settings)])


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _shown_default(default: Any) -> str | bool:
    if default is None or default in (False, ()):
        return False
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return str(default)


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
        if arg.replace("_", "-") in many:
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
    if problem["type"] == "extra_forbidden":
        return f"{kebab(name)}: unknown option{suggest(name, model.model_fields)}"
    where = kebab(name) if name in given or config is None else f"config {config}: {name}"
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


def _shortened(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."
