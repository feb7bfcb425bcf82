"""Values for options from a YAML file (no torch)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osp_opt.base.errors import FileError, OptionError
from osp_opt.base.mappings import read_mapping
from osp_opt.options import COMMANDS, Options, option_extra


def read_config(model: type[Options], path: Path) -> dict[str, Any]:
    """Values for the fields of ``model`` from a YAML mapping.

    Keys are option names, with dashes or underscores, or old names; one file may serve all
    subcommands, so options of others are passed over. A key that is the name of a subcommand
    holds values for that one only. Raises OptionError for unknown or doubled keys, FileError
    when the file is no plain YAML mapping.
    """
    names = field_spellings(model)
    shared = {name for other in COMMANDS.values() for name in field_spellings(other)}
    values: dict[str, Any] = {}
    content = read_mapping(path, "config")
    sections = {key: value for key, value in content.items() if str(key) in COMMANDS}
    own = sections.get(model.command) or {}
    if not isinstance(own, dict):
        raise FileError(f"config {path}: {model.command} must hold a mapping of options")
    general = {key: value for key, value in content.items() if key not in sections}
    for part in (general, own):
        seen: set[str] = set()
        for key, value in part.items():
            name = str(key).replace("-", "_")
            field = names.get(name)
            if field is None and part is general and name in shared:
                continue
            if field is None:
                hint = suggest(name, names)
                raise OptionError(f"config {path}: unknown key {key!r}{hint}")
            if field in seen:
                raise OptionError(f"config {path}: {field} is given twice, as {key!r} too")
            seen.add(field)
            values[field] = value
    return {name: value for name, value in values.items() if value is not None}


def suggest(word: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean X?`` when one of ``known`` is a slip away from ``word``, else nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.75)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def field_spellings(model: type[Options]) -> dict[str, str]:
    """Every spelling (underscores) of every field, to the field's name."""
    return {
        spelling: name
        for name, field in model.model_fields.items()
        for spelling in (name, *option_extra(field).get("aliases", ()))
    }
