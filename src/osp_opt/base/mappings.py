"""Files that hold one mapping, as people write them: YAML, of which JSON is a part. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import read_bytes
from osp_opt.base.errors import FileError

__all__ = ["read_mapping"]

MAX_BYTES = 2**18
MAX_DEPTH = 4
_MOST_BITS = 64
_CONSTRUCTION = (ValueError, RecursionError, LookupError, AttributeError, TypeError, OverflowError)
"""What PyYAML raises besides its own, for values that are not what their tag (!!int) says."""


def read_mapping(path: Path, what: str) -> dict[Any, Any]:
    """The mapping in a file, which a message calls `what`; empty for an empty file.

    Raises FileError when it cannot be read, is no plain YAML (aliases, deep nesting) or holds
    something else.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where it was built
    data = read_bytes(path, what, MAX_BYTES)
    try:
        _check_events(yaml.parse(data, loader))
        _check_keys(yaml.compose(data, loader))
        content = yaml.load(data, loader)
        _check_numbers(content)
    except (yaml.YAMLError, *_CONSTRUCTION) as error:
        raise FileError(
            f"{what} {path}: not valid YAML ({' '.join(str(error).split())})"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise FileError(f"{what} {path}: must be a mapping of names to values")
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
