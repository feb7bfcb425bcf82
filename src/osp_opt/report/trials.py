"""Every trial of the searches, out of their ledgers: how long it took, how far off it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from osp_opt.base.ledger import TrialLedger
from osp_opt.report.runs import Material
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.trials import schedule_key

__all__ = ["SpeedupCheck", "Trial", "pareto_front", "speedup_checks", "trials_of"]

_ERROR = "error"
_TINY = 1e-12  # latent MSE of equal videos, for the logarithm


@dataclass(frozen=True)
class Trial:
    """A schedule or cache policy that was sampled.

    kind: "steps" or "cache". seconds: of denoising, median over videos. error: latent MSE to the
    full-length or uncached video, geometric mean over videos. steps: of a schedule.
    """

    kind: str
    key: str
    seconds: float
    error: float
    videos: int
    steps: int | None = None

    @property
    def is_uniform(self) -> bool:
        """Whether this is the evenly spaced schedule of its length."""
        return self.steps is not None and self.key in _uniform_keys(self.steps)


@dataclass(frozen=True)
class SpeedupCheck:
    """A verified cache: the speed-up of denoising that was predicted, and the measured one."""

    name: str
    predicted: float
    measured: float
    low: float
    high: float


def trials_of(found: Material) -> list[Trial]:
    """All trials whose error was measured, in the order of the ledgers."""
    return [trial for ledger in found.ledgers for trial in _of_ledger(ledger)]


def _of_ledger(ledger: TrialLedger) -> Iterable[Trial]:
    """Keys are `error MODEL REFERENCE CANDIDATE SEED PROMPT`, as StepTrials and CacheTrials say."""
    groups: dict[str, list[dict[str, Any]]] = {}
    keys = ledger.keys()
    for key in keys:
        parts = key.split(" ", 5)
        values = ledger.get(key)
        if len(parts) == 6 and parts[0] == _ERROR and values and {"mse", "seconds"} <= set(values):
            groups.setdefault(parts[3], []).append(values)
    for candidate, rows in groups.items():
        steps, is_schedule, _ = candidate.partition("-")
        yield Trial(
            kind="steps" if is_schedule else "cache",
            key=candidate,
            seconds=float(np.median([row["seconds"] for row in rows])),
            error=float(np.exp(np.mean([np.log(max(row["mse"], _TINY)) for row in rows]))),
            videos=len(rows),
            steps=int(steps) if is_schedule and steps.isdecimal() else None,
        )


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other trial beats in both time and error, the fastest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.seconds, t.error)):
        if not front or trial.error < front[-1].error:
            front.append(trial)
    return front


def speedup_checks(found: Material) -> list[SpeedupCheck]:
    """Predicted against measured speed-up of every policy that was verified."""
    checks = []
    for item in found.policies:
        measured = item.meta.get("measured")
        speedup = measured.get("speedup") if isinstance(measured, dict) else None
        if not isinstance(speedup, dict) or "predicted_speedup" not in item.meta:
            continue
        estimate = float(speedup["estimate"])
        low, high = (
            estimate if value is None else float(value)
            for value in (speedup.get("low"), speedup.get("high"))
        )
        predicted = float(item.meta["predicted_speedup"])
        checks.append(SpeedupCheck(item.path.name, predicted, estimate, low, high))
    return checks


def _uniform_keys(steps: int) -> tuple[str, str]:
    even = TimestepSchedule.uniform(steps)
    whole = tuple(float(round(t)) for t in even.timesteps)  # for samplers of whole timesteps
    keys = [schedule_key(even)]
    if all(a > b for a, b in pairwise(whole)):
        keys.append(schedule_key(TimestepSchedule(whole)))
    return keys[0], keys[-1]
