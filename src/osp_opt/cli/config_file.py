"""Values for options from a YAML file (no torch)."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import read_bytes
from osp_opt.base.errors import FileError, OptionError
from osp_opt.options import COMMANDS, Options, option_extra

CONFIG_MAX_BYTES = 2**18
_MOST_BITS = 64
MAX_DEPTH = 4  # commands, options, lists
_CONSTRUCTION = (ValueError, RecursionError, LookupError, AttributeError, TypeError, OverflowError)
"""What PyYAML raises besides its own, for values that are not what their tag (!!int) says."""


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
    content = _read_yaml(path)
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


def _read_yaml(path: Path) -> dict[Any, Any]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where it was built
    data = read_bytes(path, "config", CONFIG_MAX_BYTES)
    try:
        _check_events(yaml.parse(data, loader))
        _check_keys(yaml.compose(data, loader))
        content = yaml.load(data, loader)
        _check_numbers(content)
    except (yaml.YAMLError, *_CONSTRUCTION) as error:
        raise FileError(
            f"config {path}: not valid YAML ({' '.join(str(error).split())})"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FileError(f"config {path}: must be a mapping of option names to values")
    return content


def _check_events(events: Iterable[Any]) -> None:
    """Raise ValueError for what makes a small file large or slow: aliases, deep nesting."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("YAML aliases (*name) are not allowed")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")


def _check_keys(node: Any) -> None:
    """Raise ValueError for a key that a mapping has twice: the last would silently win."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ValueError(f"{key.value} is given twice")
            seen.add(str(key.value))
            _check_keys(value)


def _check_numbers(value: Any) -> None:
    """Raise ValueError for integers that no option takes and no message could show."""
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        raise ValueError("a number is too large")
    for part in (*value, *value.values()) if isinstance(value, dict) else ():
        _check_numbers(part)
    for part in value if isinstance(value, (list, tuple, set)) else ():
        _check_numbers(part)
