"""The two JSON forms of a cache policy, checked field by field. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from osp_opt.base.errors import PolicyError
from osp_opt.base.samplers import MAX_STEPS

BlockRange = tuple[int, int]
FOUR_KEYS = (
    "cache_block_start",
    "cache_num_blocks",
    "cache_step_start",
    "cache_step_interval",
)
PLAN_FORMAT = "osp-opt/cache-policy/1"
_PLAN_KEYS = ("format", "num_steps", "order", "reuse")
_OPTIONAL_KEYS = ("guidance",)
_MAX_STEPS = 2 * MAX_STEPS  # some samplers evaluate the network twice a step
_MOST_WORK = 2_000_000  # distinct ranges times steps and their ranges; looked at in a second


def parse_four_field(data: Mapping[str, Any]) -> dict[str, int]:
    """The four integers of the reference format. Raises PolicyError on any other key or type."""
    missing = [key for key in FOUR_KEYS if key not in data]
    extra = [key for key in data if key not in FOUR_KEYS]
    if missing or extra:
        found = f"no {missing[0]}" if missing else f"unknown key {extra[0]!r}"
        raise PolicyError(f"{found}; a cache config has exactly the keys {', '.join(FOUR_KEYS)}")
    return {key: _integer(data[key], key) for key in FOUR_KEYS}


def parse_plan(
    data: Mapping[str, Any],
) -> tuple[int, int, dict[int, tuple[BlockRange, ...]]]:
    """(num_steps, order, reuse per step) of the richer format. Raises PolicyError."""
    if data["format"] != PLAN_FORMAT:
        raise PolicyError(f"format is {data['format']!r}; this version reads {PLAN_FORMAT!r}")
    # Earlier versions wrote what a forecast counts in; only steps were ever searched.
    data = {k: v for k, v in data.items() if (k, v) != ("coordinate", "step")}
    extra = [key for key in data if key not in (*_PLAN_KEYS, *_OPTIONAL_KEYS)]
    missing = [key for key in _PLAN_KEYS if key not in data]
    if missing or extra:
        found = f"no {missing[0]}" if missing else f"unknown key {extra[0]!r}"
        raise PolicyError(
            f"{found}; a cache plan has the keys {', '.join(_PLAN_KEYS)}, and may have guidance"
        )
    num_steps = _integer(data["num_steps"], "num_steps")
    if not 1 <= num_steps <= _MAX_STEPS:
        raise PolicyError(f"num_steps is {num_steps}; it must be within 1 and {_MAX_STEPS}")
    reuse: dict[int, tuple[BlockRange, ...]] = {}
    for group in _list(data["reuse"], "reuse"):
        if not isinstance(group, dict) or set(group) != {"steps", "blocks"}:
            raise PolicyError("each entry of reuse has exactly the keys steps and blocks")
        blocks = tuple(_range(item) for item in _list(group["blocks"], "blocks"))
        for step in _list(group["steps"], "steps"):
            if _integer(step, "steps") in reuse:
                raise PolicyError(f"step {step} appears twice in reuse")
            reuse[step] = blocks
    distinct = len({blocks for ranges in reuse.values() for blocks in ranges})
    if distinct * (num_steps + sum(map(len, reuse.values()))) > _MOST_WORK:
        raise PolicyError(f"{distinct} different ranges of blocks; no model has so many blocks")
    return num_steps, _integer(data["order"], "order"), reuse


def plan_to_json(plan: Sequence[tuple[BlockRange, ...]], order: int) -> dict[str, Any]:
    """The richer format; steps that reuse the same ranges are written together."""
    groups: dict[tuple[BlockRange, ...], list[int]] = {}
    for step, ranges in enumerate(plan):
        if ranges:
            groups.setdefault(ranges, []).append(step)
    return {
        "format": PLAN_FORMAT,
        "num_steps": len(plan),
        "order": order,
        "reuse": [
            {"steps": steps, "blocks": [list(blocks) for blocks in ranges]}
            for ranges, steps in groups.items()
        ],
    }


def _integer(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise PolicyError(f"{name} is {value!r}; it must be an integer")
    return value


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise PolicyError(f"{name} is {value!r}; it must be a list")
    return value


def _range(value: Any) -> BlockRange:
    pair = _list(value, "a block range")
    if len(pair) != 2:
        raise PolicyError(f"block range {value!r} must be [start, end]")
    return _integer(pair[0], "a block range"), _integer(pair[1], "a block range")
