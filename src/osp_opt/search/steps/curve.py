"""Error against number of steps: searched, uniform and others, measured and predicted.

`curve.json` holds the points, which `osp-opt report` draws. Measured points are geometric means of
the latent error against the full-length videos, with intervals over prompts; predicted ones are
costs of the table, marked as such.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from osp_opt.base.artifacts import write_json
from osp_opt.quality.intervals import ratio_ci
from osp_opt.quality.metrics import log_error
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.candidates import objectives_for
from osp_opt.search.steps.decide import Decision, Search

__all__ = ["CurvePoint", "curve_points", "write_curve"]

LENGTHS = (5, 8, 10, 12, 16, 20, 25, 33, 50, 67)  # at which the table predicts


@dataclass(frozen=True)
class CurvePoint:
    """One error of one schedule. kind: "verified" (fresh prompts), "race" (those that chose it)
    or "predicted"; low, high: 95 % interval over prompts, None where there is none.
    """

    steps: int
    schedule: str  # "plain" (those to beat: uniform, or the scheduler's own), "dp" or "ays"
    kind: str
    error: float
    low: float | None = None
    high: float | None = None
    prompts: int = 0


def write_curve(search: Search, decisions: Mapping[int, Decision]) -> None:
    """Leave curve.json in the run folder."""
    points, scaled = curve_points(search, decisions)
    folder = search.context.run_dir
    write_json(
        folder / "curve.json",
        {
            "reference_steps": len(search.reference),
            "objective": _objective(search).label,
            "predictions_scaled_to_plain": scaled,
            "plain_steps": search.table.uniform(2).origin,
            "points": [asdict(point) for point in points],
        },
    )


def curve_points(
    search: Search, decisions: Mapping[int, Decision]
) -> tuple[list[CurvePoint], bool]:
    """All points, and whether the predictions could be scaled to measurements.

    A cost has a unit of its own. One factor for all predictions makes uniform's agree with
    uniform's measurements (in the mean of the logs); without measurements they stay as they are.
    """
    measured = [
        point
        for length, decision in sorted(decisions.items())
        for point in _measured(length, decision, search.options.method)
    ]
    predicted = list(_predicted(search, decisions))
    costs = {p.steps: p.error for p in predicted if p.schedule == "plain"}
    offsets = [
        math.log(p.error / costs[p.steps])
        for p in measured
        if p.schedule == "plain" and p.steps in costs
    ]
    factor = math.exp(float(np.mean(offsets))) if offsets else 1.0
    scaled = [CurvePoint(p.steps, p.schedule, p.kind, factor * p.error) for p in predicted]
    return [*measured, *scaled], bool(offsets)


def _objective(search: Search) -> Any:
    """The cost that predicts what is measured here: the distance to the full-length video."""
    return objectives_for(search.source.kind, "video")[0]


def _measured(length: int, decision: Decision, method: str) -> Iterator[CurvePoint]:
    names = {"plain": "plain", "searched": method, "dp": "dp"}
    if decision.verification is not None:
        for name, errors in decision.verification.errors.items():
            if name == "searched" and decision.candidate == decision.uniform:
                continue
            yield from _point(length, names[name], "verified", errors)
        return
    for row in decision.race:
        raced = list(row["errors"].values())
        if row["timesteps"] == list(decision.uniform.schedule.timesteps):
            yield from _point(length, "plain", "race", raced)
        elif row["timesteps"] == list(decision.candidate.schedule.timesteps):
            yield from _point(length, method, "race", raced)


def _point(length: int, name: str, kind: str, errors: Sequence[float]) -> Iterator[CurvePoint]:
    positive = [error for error in errors if error > 0]
    if not positive:
        return
    mean = ratio_ci(positive)
    low, high = (mean.low, mean.high) if mean.tells else (None, None)
    yield CurvePoint(length, name, kind, mean.estimate, low, high, len(positive))


def _predicted(search: Search, decisions: Mapping[int, Decision]) -> Iterator[CurvePoint]:
    """Of uniform schedules, the table's best, and what Align Your Steps found."""
    table, objective = search.table, _objective(search)
    by_distribution = search.options.objective == "distribution"

    def cost(schedule: TimestepSchedule) -> float:
        return float(np.exp(log_error(table.costs(schedule, objective)).mean()))

    full = len(search.reference)
    asked = () if search.options.all_steps else decisions
    for length in sorted({*LENGTHS, *asked}):
        if not 2 < length < full:
            continue
        yield CurvePoint(length, "plain", "predicted", cost(table.uniform(length).schedule))
        planned = search.objectives(length)[0] if by_distribution else objective
        best = table.best(planned, length).schedule
        yield CurvePoint(length, "dp", "predicted", cost(best))
        found = decisions.get(length)
        if found is not None and found.candidate.origin.startswith("ays"):
            yield CurvePoint(length, "ays", "predicted", cost(found.candidate.schedule))
