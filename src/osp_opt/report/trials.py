"""Every trial of the searches, out of their ledgers: how long it took, how far off it was."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osp_opt.base.ledger import TrialLedger
from osp_opt.report.runs import Material

__all__ = ["SpeedupCheck", "Trial", "pareto_front", "speedup_checks", "trials_of"]

_ERROR = "error"
_TINY = 1e-12  # latent MSE of equal videos, for the logarithm


@dataclass(frozen=True)
class Trial:
    """A schedule or cache policy that was sampled.

    kind: "steps" or "cache". seconds: of denoising, median over videos. error: latent MSE to the
    full-length or uncached video, geometric mean over videos. steps, is_uniform: of a schedule.
    """

    kind: str
    key: str
    seconds: float
    error: float
    videos: int
    steps: int | None = None
    is_uniform: bool = False


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
    groups: dict[str, list[tuple[Mapping[str, Any], dict[str, Any]]]] = {}
    for key, values in ledger.records():
        candidate = key.get("schedule", key.get("policy"))
        if key.get("what") == _ERROR and candidate and {"mse", "seconds"} <= set(values):
            groups.setdefault(str(candidate), []).append((key, values))
    for candidate, rows in groups.items():
        key = rows[0][0]
        yield Trial(
            kind="steps" if "schedule" in key else "cache",
            key=candidate,
            seconds=float(np.median([row["seconds"] for _, row in rows])),
            error=float(np.exp(np.mean([np.log(max(row["mse"], _TINY)) for _, row in rows]))),
            videos=len(rows),
            steps=key.get("steps"),
            is_uniform=key.get("uniform") is True,
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
