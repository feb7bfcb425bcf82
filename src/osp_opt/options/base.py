"""How an option is declared: once, as a field of a frozen pydantic model (no torch)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from osp_opt.base.progress import Verbosity

PANELS = ("Job", "Model", "Video", "Prompts", "Sampling", "Verification", "Device", "Run", "Launch")
"""Help panels, in the order in which ``--help`` shows them."""

OPTIONS_FILE = "options.json"
"""Where a run folder keeps its options."""

STATE_FOLDER = ".osp-opt"
"""Where commands keep their own state (options, logs) in a folder that the user named for results,
which they share with others."""

PLACES = ("DIR", "FILE", "PATH", "RUN")
"""Metavars of the options that name a place on the disk."""

_SHORT_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_PATHS = (Path, Path | None)
_NAME_MAX = 255  # bytes in one part of a path, on all file systems in use


def option(
    default: Any,
    text: str,
    *,
    panel: str,
    unit: str | None = None,
    aliases: tuple[str, ...] = (),
    short: str | None = None,
    metavar: str | None = None,
    identity: bool = True,
    positional: bool = False,
    off: str | None = None,
    **constraints: Any,
) -> Any:
    """Declare one option.

    ``text`` is its help and ``unit`` what its number counts; ``aliases`` are other flag names, in
    field spelling, and ``short`` is a letter; ``identity`` is False for options that cannot change
    a result (where to run, how to report), so that a run may be resumed with other values of them;
    ``positional`` is True for what is given without a flag; ``off`` is another name, besides
    ``no_...``, of the flag that turns a switch off. ``constraints`` are pydantic's (``ge``,
    ``multiple_of``, ...).
    """
    extra: JsonDict = {
        "panel": panel,
        "unit": unit,
        "aliases": [*aliases],
        "short": short,
        "metavar": metavar,
        "identity": identity,
        "positional": positional,
        "off": off,
    }
    return Field(default, description=text, json_schema_extra=extra, **constraints)


def flag_of(name: str) -> str:
    """``num_frames`` as it stands on the command line: ``--num-frames``."""
    return "--" + name.replace("_", "-")


def option_extra(field: FieldInfo) -> dict[str, Any]:
    """What :func:`option` recorded beside the pydantic field."""
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def split_list(value: Any) -> Any:
    """``"10,20"`` or a single number becomes a list; so does ``"a,b"``."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return [value] if isinstance(value, int) else value


def _split_texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _fraction(value: Any) -> Any:
    """``"1%"`` becomes 0.01."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


def _look_at(place: str | Path) -> None:
    """Raise ValueError for a path that cannot be looked at; what is not there can."""
    if not str(place):
        raise ValueError("is empty; give a path, or leave the option out")
    try:
        name = os.fsencode(place)
        if b"\0" in name or any(len(part) > _NAME_MAX for part in name.split(b"/")):
            raise ValueError("no file can be called that; check the path")
        os.stat(Path(place).expanduser())
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, RuntimeError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot be looked at ({reason}); check the path") from error


def _long_name(value: Any) -> Any:
    """``fp16`` becomes float16."""
    return _SHORT_DTYPES.get(value, value) if isinstance(value, str) else value


Numbers = Annotated[tuple[int, ...], BeforeValidator(split_list)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_split_texts)]
Fraction = Annotated[float, BeforeValidator(_fraction)]
Dtype = Annotated[Literal["auto", "float32", "bfloat16", "float16"], BeforeValidator(_long_name)]


class Options(BaseModel):
    """Base of all option models: frozen, typed, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        defer_build=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @field_validator("*", mode="before")
    @classmethod
    def _usable_path(cls, value: Any, info: ValidationInfo) -> Any:
        """Paths as they are, spaces at the ends too; not those that every look would stumble over:
        names that no file can have, places that we may not look at.
        """
        field = cls.model_fields.get(info.field_name or "")
        if field is None or option_extra(field).get("metavar") not in PLACES:
            return value
        for place in [value] if isinstance(value, (str, Path)) else value or ():
            if isinstance(place, (str, Path)):
                _look_at(place)
        return Path(value) if isinstance(value, str) and field.annotation in _PATHS else value

    command: ClassVar[str]
    """The subcommand that takes these options."""

    common: ClassVar[tuple[str, ...]] = ()
    """The options that ``--help`` shows, in order; empty: all. ``--help-all`` shows every one."""

    example: ClassVar[str] = ""
    """Arguments of a typical call."""

    folder: ClassVar[str | None] = None
    """The run folder's name inside ``workdir``; None when the command keeps nothing."""

    workdir: Path = option(
        Path("osp-opt-work"),
        "Working folder: every command finds its predecessor's results in it.",
        panel="Run",
        metavar="DIR",
        identity=False,
    )
    debug: bool = option(
        False, "Show tracebacks instead of one-line errors.", panel="Run", identity=False
    )
    verbosity: Verbosity = option(
        "normal",
        "How much is told; -q, -v and --json for short. json: the result alone on stdout.",
        panel="Run",
        identity=False,
    )

    @property
    def run_dir(self) -> Path:
        """Where this command keeps its own state: options, logs, ledger."""
        return self.workdir / (self.folder or self.command)

    def identity(self) -> dict[str, Any]:
        """The options that decide the result, as plain JSON values."""
        fields = type(self).model_fields
        kept = {name for name, field in fields.items() if option_extra(field).get("identity", True)}
        return self.model_dump(mode="json", include=kept)
