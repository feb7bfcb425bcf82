"""Fewer steps: the pipeline's own spacing, any single shift, UniPC, and what the table finds.

Of one recorded table: the programme of the deterministic cost with several divisor powers, for
plain and for corrected steps, and what `optimize` plans with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.flow.bench import SHIFT, STEPS, Bench, Entrant
from osp_opt.quality.intervals import mean_ci, paired_difference
from osp_opt.search.recipe.pairs import PairProgramme, corrected_cost
from osp_opt.search.steps.candidates import StepTable
from osp_opt.search.steps.objectives import StepObjective

__all__ = ["corrections", "planned", "run", "searched"]

LENGTHS = (25, 12, 8)  # half, a quarter and a sixth of the steps
SHIFTS = (1.0, 2.0, 3.0, 5.0, 8.0)
POWERS = (0.0, 0.25, 0.5)
_C = 0.5


def run(bench: Bench, prompts: list[str]) -> dict[str, Any]:
    """PSNR to the converged video of every schedule of every length."""
    entrants = _entrants(bench)
    rows = bench.measure_all(entrants, prompts)
    found = []
    for entrant in entrants:
        kind = entrant.name.split(" steps, ", 1)[1]
        values = [row["to_converged"] for row in rows[entrant.name]]
        best = _best_shift(rows, entrant.steps)
        against = [row["to_converged"] for row in rows[best]]
        found.append(
            {
                "steps": entrant.steps,
                "kind": kind,
                "psnr": mean_ci(values).as_json(),
                "best_shift": best,
                "gain": paired_difference(values, against).as_json(),
                "all_right": float(np.mean([row["all_right"] for row in rows[entrant.name]])),
                "values": values,
            }
        )
    return {"rows": found, "prompts": len(prompts)}


def _best_shift(rows: dict[str, list[dict[str, float]]], steps: int) -> str:
    """The shift that is best on these very prompts: it is given every advantage."""
    names = [_name(steps, f"shift {shift:g}") for shift in SHIFTS]
    return max(names, key=lambda name: float(np.mean([r["to_converged"] for r in rows[name]])))


def _name(steps: int, kind: str) -> str:
    return f"{steps} steps, {kind}"


def _entrants(bench: Bench) -> list[Entrant]:
    found = []

    def add(steps: int, kind: str, levels: tuple[float, ...], weight: float = 0.0) -> None:
        kind = f"{kind}, a = {weight:g}" if weight else kind
        found.append(Entrant(_name(steps, kind), steps, levels, corrections(steps, weight)))

    for steps in (STEPS, *LENGTHS):
        own = bench.own(steps)
        for shift in SHIFTS:
            add(steps, f"shift {shift:g}", own if shift == SHIFT else bench.shifted(steps, shift))
        for weight in (0.5, 1.0):
            add(steps, f"shift {SHIFT:g}", own, weight)
        add(steps, "shift 1", bench.shifted(steps, 1.0), 1.0)
        found.append(Entrant(_name(steps, "UniPC"), steps, solver="UniPC"))
    for steps in LENGTHS:
        for power in POWERS:
            for weight in (0.0, 0.5):
                levels = searched(bench, steps, power, weight)
                add(steps, f"searched, p = {power:g}", levels, weight)
        add(steps, "searched, p = 0", searched(bench, steps, 0.0, 1.0), 1.0)
        levels, weight = planned(bench, steps)
        add(steps, "planned by the table", levels, weight)
    return found


def corrections(steps: int, weight: float) -> tuple[float, ...]:
    """The same correction of every step that can have one."""
    return (0.0, *(weight for _ in range(steps - 2)), 0.0) if weight else ()


def planned(bench: Bench, steps: int) -> tuple[tuple[float, ...], float]:
    """Levels and correction that `optimize` would put first; nothing is sampled."""
    schedule = bench.planner.of_length(steps)[0][0].schedule
    return schedule.timesteps, max(schedule.corrections, default=0.0)


def searched(bench: Bench, steps: int, power: float, weight: float) -> tuple[float, ...]:
    """The levels of least additive cost by the recorded table, for steps corrected by `weight`."""
    calibration, pipeline = bench.calibration, bench.pipeline
    table = StepTable(calibration, pipeline.kind, own=pipeline.schedule)
    if not weight:
        return table.best(StepObjective("deterministic", _C, power), steps).schedule.timesteps
    k = len(calibration.timesteps)
    changes, sigmas = table.changes_at(calibration.timesteps)
    cost = corrected_cost(changes[:k, :k], sigmas[:k], weight, c=_C, power=power)
    path = PairProgramme(cost, calibration.timesteps).path(steps)
    return tuple(float(t) for t in calibration.timesteps[list(path)])
