"""What a list of timesteps and of step corrections may be. No torch in here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from osp_opt.base.artifacts import read_json
from osp_opt.base.errors import ScheduleError

__all__ = [
    "FLOW_MAX",
    "MAX_CORRECTION",
    "MAX_TIMESTEP",
    "check_corrections",
    "check_timesteps",
    "read_fractions",
    "same_timesteps",
]

MAX_TIMESTEP = 999.0
"""The noisiest of the 1000 trained levels."""

SAME_TIMESTEP = 1e-3
"""Timesteps nearer than this are one."""

FLOW_MAX = 1000.0
"""Pure noise of flow matching, whose timesteps are 1000 s."""

_MAX_BYTES = 1 << 20

MAX_CORRECTION = 4.0
"""Of a step that makes up for one twice as long."""


def check_timesteps(
    timesteps: Sequence[float], most: float = MAX_TIMESTEP, *, flow: bool = False
) -> None:
    """Raise ScheduleError unless they are finite, in [0, most] and descend; of `flow` matching,
    in (0, 1000].
    """
    most = FLOW_MAX if flow else most
    if not timesteps:
        raise ScheduleError("schedule: it is empty; give at least one timestep")
    for index, t in enumerate(timesteps):
        if not math.isfinite(t) or not 0.0 <= t <= most:
            raise ScheduleError(
                f"schedule: timestep {index} is {t}; every timestep must lie in [0, {most:g}]"
            )
        if index and not t < timesteps[index - 1]:
            raise ScheduleError(
                f"schedule: timestep {index} is {t} after {timesteps[index - 1]}; "
                "timesteps must strictly descend"
            )
    if flow and timesteps[-1] == 0.0:
        raise ScheduleError("schedule: the last level is 0, which has no noise to remove")


def read_fractions(path: str | Path, most: float = MAX_TIMESTEP) -> list[float]:
    """A schedule file's list: ascending, of timestep / 1000 up to `most`.

    Raises FileError when it is missing, too large or not JSON; ScheduleError for anything else.
    """
    content = read_json(Path(path), "schedule", max_bytes=_MAX_BYTES, max_depth=2)
    if not isinstance(content, list) or not content:
        raise ScheduleError(
            f"{path}: not a schedule; it must be a JSON list of timesteps / 1000, ascending"
        )
    fractions: list[float] = []
    for index, value in enumerate(content):
        what = f"{path}: entry {index} is {value!r:.40}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ScheduleError(f"{what}; expected a number in [0, 1)")
        if not 0.0 <= value <= most / 1000:  # also refuses NaN
            raise ScheduleError(f"{what}; entries are timestep / 1000 within [0, {most / 1000:g}]")
        if fractions and not value > fractions[-1]:
            raise ScheduleError(f"{what} after {fractions[-1]}; entries must strictly ascend")
        fractions.append(float(value))
    return fractions


def same_timesteps(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two schedules are one, but for what the decimals of a file lose."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(abs(a - b) <= SAME_TIMESTEP for a, b in pairs)


def check_corrections(corrections: Sequence[float], num_steps: int) -> None:
    """Raise ScheduleError unless they fit the steps, lie in [0, 4], and spare both ends."""
    if len(corrections) != num_steps:
        raise ScheduleError(f"schedule: {len(corrections)} corrections for {num_steps} steps")
    for index, weight in enumerate(corrections):
        if not 0.0 <= weight <= MAX_CORRECTION:
            raise ScheduleError(
                f"schedule: correction {index} is {weight}; it must lie in [0, {MAX_CORRECTION:g}]"
            )
    if corrections[0] or corrections[-1]:
        raise ScheduleError("schedule: the first and the last step can have no correction")
