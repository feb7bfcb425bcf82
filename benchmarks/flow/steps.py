"""Fewer steps: the pipeline's own spacing, any single shift, UniPC, and what the table finds.

Of one recorded table: the programme of the deterministic cost with several divisor powers, plain
and for corrected steps (a = 1), each as found and half-way to the pipeline's own spacing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.flow.bench import SHIFT, STEPS, Bench, Entrant
from osp_opt.calibration import step_changes
from osp_opt.quality.intervals import mean_ci, paired_difference
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.recipe.pairs import corrected_cost, plan_pairs
from osp_opt.search.steps.candidates import StepTable
from osp_opt.search.steps.objectives import StepObjective, deterministic_cost
from osp_opt.search.steps.programme import MIN_GAP

__all__ = ["POWERS", "SHIFTS", "run", "searched"]

LENGTHS = (25, 12, 8)  # half, a quarter and a sixth of the steps
SHIFTS = (1.0, 2.0, 3.0, 5.0, 8.0)
POWERS = (0.0, 0.25, 0.5)
_C = 0.5
_NO_NOISE = 1e-6  # of the last recorded level: the clean video's, whose clock has to be finite
_HALF = " half-way to own"


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

    def add(steps: int, kind: str, levels: tuple[float, ...], corrected: bool = False) -> None:
        weights = _corrections(steps) if corrected else ()
        kind = f"{kind}, a = 1" if corrected else kind
        found.append(Entrant(_name(steps, kind), steps, levels, weights))

    for steps in (STEPS, *LENGTHS):
        for shift in SHIFTS:
            # The model's own shift: as the pipeline itself sets it.
            levels = bench.own(steps) if shift == SHIFT else bench.shifted(steps, shift)
            add(steps, f"shift {shift:g}", levels)
            add(steps, f"shift {shift:g}", levels, corrected=True)
        found.append(Entrant(_name(steps, "UniPC"), steps, solver="UniPC"))
    for steps in LENGTHS:
        for power in POWERS:
            for corrected in (False, True):
                levels = searched(bench, steps, power, corrected)
                add(steps, f"searched, p = {power:g}", levels, corrected)
                half = 0.5 * (np.array(levels) + np.array(bench.own(steps)))
                add(steps, f"searched, p = {power:g},{_HALF}", tuple(half.tolist()), corrected)
    return found


def _corrections(steps: int) -> tuple[float, ...]:
    return (0.0, *(1.0 for _ in range(steps - 2)), 0.0)


def searched(bench: Bench, steps: int, power: float, corrected: bool) -> tuple[float, ...]:
    """The levels of least cost by the recorded table, for plain or for corrected steps."""
    calibration, pipeline = bench.calibration, bench.pipeline
    table = StepTable(calibration, pipeline.kind, own=pipeline.schedule)
    objective = StepObjective("deterministic", _C, power)
    if not corrected:
        schedule: TimestepSchedule = table.best(objective, steps).schedule
        return schedule.timesteps
    # The level without noise behind the last recorded one, at which the prediction is the last.
    sigmas = calibration.sigmas
    sigmas = np.append(sigmas, sigmas[-1] * _NO_NOISE)
    changes = np.pad(step_changes(calibration.step_gram).mean(axis=0), (0, 1), mode="edge")
    times = np.append(calibration.timesteps, calibration.timesteps[-1] - 2.0 * MIN_GAP)
    cost = corrected_cost(changes, sigmas, 1.0, ancestral=False, c=_C, power=power)
    plain = deterministic_cost(changes, sigmas, _C, power)
    cost[:, :, -1] = plain[None, :, -1]  # the last step has no correction
    path = plan_pairs(cost, times, steps + 1)
    return tuple(float(t) for t in times[list(path[:-1])])
