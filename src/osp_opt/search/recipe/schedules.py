"""Schedules of corrected steps for any length, and what they are predicted to err by.

Suffixes: P videos, K recorded levels, M levels of the refined grid.
"""

from __future__ import annotations

import numpy as np

from osp_opt.base.samplers import SAMPLER_KINDS
from osp_opt.calibration import Calibration, step_changes
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of
from osp_opt.search.recipe.coherent import coherent_error, error_coefficients
from osp_opt.search.recipe.pairs import corrected_cost, plan_pairs
from osp_opt.search.steps.candidates import (
    GRID_LEVELS,
    StepCandidate,
    StepTable,
    blend,
    objectives_for,
)
from osp_opt.search.steps.objectives import refine_changes

__all__ = ["CorrectedSchedules", "natural_correction"]

_DIVISORS = ((0.5, 1.0), (5.0, 1.5), (2.0, 1.0))  # (c, power): how fast errors fade with noise
_MOST_LEVELS = 128  # of the programme's grid: its time and memory grow with their cube


def natural_correction(sampler: str) -> float:
    """The weight of the two-step rule that serves a sampler best: half with fresh noise, which a
    full correction would amplify, all of it without; none where steps are of second order.
    """
    kind = SAMPLER_KINDS[sampler]
    if not kind.takes_corrections:
        return 0.0
    return 0.5 if kind.ancestral else 1.0


class CorrectedSchedules:
    """Candidates of each length, best-predicted first, from the recorded table.

    What is searched is made smooth: every timestep is moved towards its neighbours (where a sampler
    takes whole ones only, half-way to uniform). The sharp optimum of a table fits its levels.
    """

    def __init__(self, calibration: Calibration, sampler: str) -> None:
        self.weight = natural_correction(sampler)
        self._sampler = sampler
        self._ancestral = SAMPLER_KINDS[sampler].ancestral
        self._table = StepTable(calibration, sampler)
        self._changes_KK = step_changes(calibration.step_gram).mean(axis=0)
        self._sigmas_K = calibration.sigmas
        recorded = calibration.timesteps
        self._grid_M = np.linspace(recorded[0], recorded[-1], max(GRID_LEVELS, len(recorded)))
        self._costs: list[np.ndarray] = []
        self._found: dict[int, list[tuple[StepCandidate, float]]] = {}

    def uniform(self, num_steps: int) -> StepCandidate:
        """Evenly spaced corrected steps."""
        return self._corrected(self._table.uniform(num_steps))

    def of_length(self, num_steps: int) -> list[tuple[StepCandidate, float]]:
        """Uniform and the best searched schedule, both corrected, with their predicted errors."""
        if num_steps not in self._found:
            uniform = self.uniform(num_steps)
            candidates = [uniform]
            searched = [
                self._corrected(candidate)
                for candidate in self._searched(num_steps)
                if not self._table.has_twin(candidate, [uniform])
            ]
            if searched:
                candidates.append(min(searched, key=self.predicted))
            rated = [(candidate, self.predicted(candidate)) for candidate in candidates]
            self._found[num_steps] = sorted(rated, key=lambda one: one[1])
        return self._found[num_steps]

    def plain(self, num_steps: int) -> tuple[StepCandidate, float] | None:
        """What `search-steps` would put first, without corrections, and its predicted error; None
        where there are as many steps as were recorded.
        """
        if not 2 < num_steps < len(self._table.recorded_K) or not self.weight:
            return None
        objective = objectives_for(self._sampler, "video")[0]
        candidate = StepCandidate(
            self._table.best(objective, num_steps).schedule, "searched, not corrected"
        )
        return candidate, self.predicted(candidate)

    def predicted(self, candidate: StepCandidate) -> float:
        """Mean squared error of the finished latents, in the unit of the recorded predictions."""
        own = np.array(candidate.schedule.timesteps)
        levels = np.unique(np.concatenate([self._grid_M, own]))[::-1]
        place = {float(t): i for i, t in enumerate(levels)}
        path = [place[float(t)] for t in own]
        sigmas = sigma_of(levels)
        changes = refine_changes(self._changes_KK, self._sigmas_K, sigmas)
        coefficients = error_coefficients(
            sigmas, path, candidate.schedule.corrections, ancestral=self._ancestral
        )
        return float(coherent_error(changes, coefficients))

    def _searched(self, num_steps: int) -> list[StepCandidate]:
        levels = self._table.recorded_K
        thinned = np.unique(np.linspace(0, len(levels) - 1, _MOST_LEVELS).round().astype(int))
        grid = levels if len(levels) <= _MOST_LEVELS else levels[thinned]
        if not 2 < num_steps < len(grid):
            return []
        if not self._costs:
            changes = refine_changes(self._changes_KK, self._sigmas_K, sigma_of(grid))
            self._costs = [
                corrected_cost(
                    changes, sigma_of(grid), self.weight, ancestral=self._ancestral, c=c, power=p
                )
                for c, p in _DIVISORS
            ]
        paths = [grid[list(plan_pairs(cost, grid, num_steps))] for cost in self._costs]
        if self._table.takes_whole_timesteps:
            uniform = self._table.uniform(num_steps)
            sharp = [StepCandidate(_schedule(timesteps), "searched") for timesteps in paths]
            return [blend(candidate, uniform, 0.5, True) for candidate in sharp]
        return [StepCandidate(_schedule(_smoothed(timesteps)), "searched") for timesteps in paths]

    def _corrected(self, candidate: StepCandidate) -> StepCandidate:
        return StepCandidate(candidate.schedule.corrected(self.weight), candidate.origin)


def _schedule(timesteps: np.ndarray) -> TimestepSchedule:
    return TimestepSchedule(tuple(float(t) for t in timesteps))


def _smoothed(timesteps: np.ndarray, times: int = 2) -> np.ndarray:
    """Every timestep between its neighbours moved towards their middle; still descending."""
    result = timesteps.astype(np.float64)
    for _ in range(times):
        result[1:-1] = (result[:-2] + 2.0 * result[1:-1] + result[2:]) / 4.0
    return result
