"""The arguments of a pipeline's call, checked before any work, which is not where they are used.

Every function raises OptionError with the argument's name, what was found and what it may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

from osp_opt.base.errors import OptionError

__all__ = ["check_call", "check_guidance", "check_kind", "check_whole", "texts"]


def texts(name: str, value: Any) -> list[str]:
    """A text, or several, as a list; none of None."""
    found = [value] if isinstance(value, str) else value or []
    if not isinstance(found, (list, tuple)) or not all(isinstance(text, str) for text in found):
        raise _wrong(name, value, "a text, or a list of texts")
    return list(found)


def check_whole(values: Mapping[str, Any], least: int | None = 1) -> None:
    """Whole numbers of at least `least`; None is left to a default."""
    for name, value in values.items():
        if value is None:
            continue
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if not whole or (least is not None and value < least):
            at_least = "" if least is None else f" of at least {least}"
            raise _wrong(name, value, f"a whole number{at_least}")


def check_guidance(value: Any) -> None:
    """A finite number."""
    if not isinstance(value, Real) or not math.isfinite(value):
        raise _wrong("guidance_scale", value, "a finite number")


def check_kind(name: str, value: Any, kinds: tuple[type, ...], words: str) -> None:
    """One of `kinds`, which are `words`, or None."""
    if value is not None and not isinstance(value, kinds):
        raise _wrong(name, value, words)


def check_call(values: Mapping[str, Callable[..., Any] | None]) -> None:
    """Functions, or None."""
    for name, value in values.items():
        if value is not None and not callable(value):
            raise _wrong(name, value, "a function")


def _wrong(name: str, value: Any, words: str) -> OptionError:
    return OptionError(f"{name} is {' '.join(repr(value).split()):.60}; it must be {words}")
