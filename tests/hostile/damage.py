"""Ways to damage a file: what disks, networks and other people do to bytes and to JSON."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, 10**400, 0.5, -0.0, 1e308, "", "x", "../../etc/passwd"),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        [],
        {},
        [[]],
        [None],
        {"a": []},
        "a\0b",
        "9" * 300,
    ),
)
"""What may stand where something else is expected."""


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """`data` cut short, with bits flipped, bytes overwritten, doubled, inserted or removed."""
    places = st.integers(0, len(data) - 1)
    few = st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=8)
    some = st.binary(min_size=1, max_size=16)
    return st.one_of(
        places.map(lambda end: data[:end]),
        few.map(lambda bits: _flipped(data, bits)),
        st.tuples(places, some).map(lambda p: data[: p[0]] + p[1] + data[p[0] + len(p[1]) :]),
        st.tuples(places, some).map(lambda p: data[: p[0]] + p[1] + data[p[0] :]),
        st.tuples(places, places).map(lambda p: data[: min(p)] + data[max(p) :]),
        places.map(lambda start: data + data[start:]),
    )


def swapped(value: Any) -> st.SearchStrategy[Any]:
    """A JSON value with one of its parts, at any depth, replaced by an odd one or left out."""
    paths = list(_paths(value))
    return st.tuples(st.sampled_from(paths), st.sampled_from((*ODD_VALUES, _LEFT_OUT))).map(
        lambda choice: _replaced(value, *choice)
    )


def swapped_text(value: Any) -> st.SearchStrategy[bytes]:
    """`swapped` as JSON text, with NaN and infinities as Python writes them."""
    return swapped(value).map(lambda odd: json.dumps(odd).encode())


_LEFT_OUT = object()


def _flipped(data: bytes, bits: list[tuple[int, int]]) -> bytes:
    array = bytearray(data)
    for place, bit in bits:
        array[place] ^= 1 << bit
    return bytes(array)


def _paths(value: Any, here: tuple[Any, ...] = ()) -> Any:
    yield here
    inner = value.items() if isinstance(value, dict) else ()
    inner = enumerate(value) if isinstance(value, list) else inner
    for key, item in inner:
        yield from _paths(item, (*here, key))


def _replaced(value: Any, path: tuple[Any, ...], odd: Any) -> Any:
    if not path:
        return None if odd is _LEFT_OUT else odd
    copy = value.copy()
    if odd is _LEFT_OUT and len(path) == 1:
        del copy[path[0]]
    else:
        copy[path[0]] = _replaced(value[path[0]], path[1:], odd)
    return copy
