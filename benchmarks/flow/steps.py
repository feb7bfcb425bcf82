"""Fewer steps: the pipeline's own spacing, any single shift, UniPC, and what the table finds.

Of one recorded table: the programme of the deterministic cost with several divisor powers, for
plain and for corrected steps, and what the coherent error chooses among all of these.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.flow.bench import SHIFT, STEPS, Bench, Entrant
from osp_opt.calibration import step_changes
from osp_opt.quality.intervals import mean_ci, paired_difference
from osp_opt.search.recipe.coherent import coherent_error, error_coefficients
from osp_opt.search.recipe.pairs import corrected_cost, plan_pairs
from osp_opt.search.steps.candidates import GRID_LEVELS, StepTable
from osp_opt.search.steps.objectives import StepObjective, deterministic_cost, refine_changes
from osp_opt.search.steps.programme import MIN_GAP

__all__ = ["corrections", "planned", "run", "searched"]

LENGTHS = (25, 12, 8)  # half, a quarter and a sixth of the steps
SHIFTS = (1.0, 2.0, 3.0, 5.0, 8.0)
POWERS = (0.0, 0.25, 0.5)
WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
UNIT = 1.0  # standard deviation of the latents: the data scale of the coherent error
_C = 0.5
_NO_NOISE = 1e-6  # of the last recorded level: the clean video's, whose clock has to be finite


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
    """Levels and correction of the least coherent error among what is searched for every divisor
    power and weight, as found and half-way to the pipeline's own spacing; nothing is sampled.
    """
    own = bench.own(steps)
    candidates = [(own, weight) for weight in WEIGHTS]
    for power in POWERS:
        for weight in WEIGHTS:
            sharp = searched(bench, steps, power, weight)
            half = tuple((0.5 * (np.array(sharp) + np.array(own))).tolist())
            candidates += [(sharp, weight), (half, weight)]
    return min(candidates, key=lambda one: predicted(bench, *one))


def predicted(bench: Bench, levels: tuple[float, ...], weight: float) -> float:
    """The coherent error of corrected steps at `levels`, by the recorded table."""
    calibration = bench.calibration
    first, last = calibration.timesteps[0], calibration.timesteps[-1]
    path = np.clip(np.array(levels), last, first)
    grid = np.unique(np.concatenate([np.linspace(first, last, GRID_LEVELS), path]))[::-1]
    sigmas = calibration.scale.sigmas(grid)
    changes = step_changes(calibration.step_gram).mean(axis=0)
    changes = refine_changes(changes, calibration.sigmas, sigmas, calibration.scale.position)
    changes, sigmas = _with_an_end(changes, sigmas)
    place = {float(t): i for i, t in enumerate(grid)}
    at = [*dict.fromkeys(place[float(t)] for t in path), len(grid)]
    weights = [*corrections(len(at) - 1, weight), 0.0] if weight else []
    found = error_coefficients(sigmas, at, weights, ancestral=False, c=UNIT)
    return float(coherent_error(changes, found))


def searched(bench: Bench, steps: int, power: float, weight: float) -> tuple[float, ...]:
    """The levels of least additive cost by the recorded table, for steps corrected by `weight`."""
    calibration, pipeline = bench.calibration, bench.pipeline
    if not weight:
        table = StepTable(calibration, pipeline.kind, own=pipeline.schedule)
        return table.best(StepObjective("deterministic", _C, power), steps).schedule.timesteps
    changes = step_changes(calibration.step_gram).mean(axis=0)
    changes, sigmas = _with_an_end(changes, calibration.sigmas)
    times = np.append(calibration.timesteps, calibration.timesteps[-1] - 2.0 * MIN_GAP)
    cost = corrected_cost(changes, sigmas, weight, ancestral=False, c=_C, power=power)
    plain = deterministic_cost(changes, sigmas, _C, power)
    cost[:, :, -1] = plain[None, :, -1]  # the last step has no correction
    path = plan_pairs(cost, times, steps + 1)
    return tuple(float(t) for t in times[list(path[:-1])])


def _with_an_end(changes: np.ndarray, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """With the level without noise behind the last, at which the prediction is the last one."""
    return np.pad(changes, (0, 1), mode="edge"), np.append(sigmas, sigmas[-1] * _NO_NOISE)
