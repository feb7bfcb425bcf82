"""Polishing a schedule on really sampled errors: coordinate descent over a few smooth warps.

Moving single timesteps, as Align Your Steps does on an estimate, changes the sampled error less
than prompts differ, and costs two samplings per timestep. So the coordinates are wide: hat
functions over the position in the schedule, each of which shifts a part of the curve of timesteps
and leaves order and both ends as they are. Even so a few prompts are soon fitted at the expense of
all others (measured: docs/how-the-searches-work.md), so other prompts have the last word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from osp_opt.base.errors import ScheduleError
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.programme import MIN_GAP, spread_apart

__all__ = ["PolishResult", "polish_schedule", "warped"]

KNOTS = 4  # hats: the position 0..1 is cut into KNOTS + 1 parts
FIRST_SHIFT = 0.08  # of the position; below 1 / (KNOTS + 1) the warped order cannot change
LAST_SHIFT = 0.015  # smaller ones are not told apart by a few prompts


Measure = Callable[[Sequence[TimestepSchedule]], list[list[float]]]
"""Errors (mean squared, positive) of schedules: [schedule][prompt]."""


@dataclass(frozen=True)
class PolishResult:
    """The polished schedule, or the start where other prompts did not confirm it.

    log_ratios: errors of what was polished over the start's as logs, one per prompt; others: the
    same on the prompts that judged it.
    """

    schedule: TimestepSchedule
    log_ratios: tuple[float, ...]
    tried: int
    others: tuple[float, ...] = ()


def polish_schedule(
    start: TimestepSchedule,
    measure: Measure,
    limit: int,
    judge: Measure | None = None,
    *,
    whole: bool = False,
    min_gap: float = MIN_GAP,
) -> PolishResult:
    """Lower the measured error of `start`, trying at most `limit` schedules.

    Both directions of a coordinate are tried together (so that ranks can share them) and the
    better is taken if it lowers the mean log error over the prompts; a sweep that moves nothing
    halves the shift. Deterministic, so that a ledger of the measurements resumes it.

    Args:
        start: its own errors are measured too, which does not count.
        measure: errors (mean squared, positive) [schedule][prompt].
        limit: of further schedules measured.
        judge: as `measure`, on other prompts; what is no better than `start` there is not kept.
        whole: for samplers that take whole timesteps only.
        min_gap: smallest distance of neighbouring timesteps.
    """
    found = _descended(start, measure, limit, whole, min_gap)
    if judge is None or found.schedule == start:
        return found
    own, polished = (_logs(errors) for errors in judge([start, found.schedule]))
    others = tuple(float(ratio) for ratio in polished - own)
    kept = found.schedule if np.mean(others) < 0.0 else start
    return replace(found, schedule=kept, others=others)


def _descended(
    start: TimestepSchedule, measure: Measure, limit: int, whole: bool, min_gap: float
) -> PolishResult:
    origin = _logs(measure([start])[0])
    best, best_logs = start, origin
    tried, shift = 0, FIRST_SHIFT
    while shift >= LAST_SHIFT:
        moved = False
        for knot in range(1, KNOTS + 1):
            ways = [warped(best, knot, way * shift, whole, min_gap) for way in (1.0, -1.0)]
            fresh = [each for each in ways if each is not None and each != best]
            if not fresh:
                continue
            if tried + len(fresh) > limit:
                return _result(best, best_logs, origin, tried)
            tried += len(fresh)
            for schedule, errors in zip(fresh, measure(fresh), strict=True):
                logs = _logs(errors)
                if logs.mean() < best_logs.mean():
                    best, best_logs, moved = schedule, logs, True
        if not moved:
            shift /= 2.0
    return _result(best, best_logs, origin, tried)


def warped(
    schedule: TimestepSchedule,
    knot: int,
    shift: float,
    whole: bool = False,
    min_gap: float = MIN_GAP,
) -> TimestepSchedule | None:
    """`schedule` read at positions shifted by up to `shift` around `knot` (1..KNOTS), or None when
    whole timesteps or the gap leave no such schedule.
    """
    own = np.array(schedule.timesteps)
    place = np.linspace(0.0, 1.0, len(own))
    hat = np.clip(1.0 - np.abs(place * (KNOTS + 1) - knot), 0.0, 1.0)
    moved = np.interp(place + shift * hat, place, own)
    if whole:
        moved = np.round(moved)
    try:
        apart = spread_apart(moved, max(min_gap, 1.0) if whole else min_gap)
        return TimestepSchedule(tuple(float(t) for t in apart))
    except ScheduleError:
        return None


def _logs(errors: Sequence[float]) -> np.ndarray:
    logs: np.ndarray = np.log(np.maximum(errors, 1e-30))
    return logs


def _result(
    best: TimestepSchedule, logs: np.ndarray, origin: np.ndarray, tried: int
) -> PolishResult:
    return PolishResult(best, tuple(float(ratio) for ratio in logs - origin), tried)
