"""Schedules of corrected steps for any length, and what they are predicted to err by.

Suffixes: P videos, K recorded levels, M levels of the refined grid.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from osp_opt.base.samplers import SamplerKind
from osp_opt.calibration import Calibration, step_changes
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.recipe.coherent import coherent_error, error_coefficients
from osp_opt.search.recipe.pairs import corrected_cost, plan_pairs
from osp_opt.search.steps.candidates import (
    GRID_LEVELS,
    StepCandidate,
    StepTable,
    blend,
    objectives_for,
    with_clean_level,
)
from osp_opt.search.steps.objectives import refine_changes

__all__ = ["CorrectedSchedules", "natural_corrections"]

_DIVISORS = ((0.5, 1.0), (5.0, 1.5), (2.0, 1.0))  # (c, power): how fast errors fade with noise
_MOST_LEVELS = 128  # of the programme's grid: its time and memory grow with their cube


def natural_corrections(kind: SamplerKind) -> tuple[float, ...]:
    """The weights of the two-step rule that are worth trying: half with fresh noise, which a full
    correction would amplify. Without it how much is right differs between models and spacings (on
    one of flow matching half a correction was 3 dB better than none and a full one 5 dB worse), so
    the table decides. None where steps are of second order.
    """
    if not kind.takes_corrections:
        return (0.0,)
    return (0.5,) if kind.ancestral else (0.5, 0.75, 1.0)


class CorrectedSchedules:
    """Candidates of each length, best-predicted first, from the recorded table.

    What is searched is made smooth: every timestep is moved towards its neighbours (where a sampler
    takes whole ones only, half-way to uniform). The sharp optimum of a table fits its levels.
    Uniform are, of other models, the steps of their scheduler's `own`.
    """

    def __init__(
        self,
        calibration: Calibration,
        kind: SamplerKind,
        own: Callable[[int], TimestepSchedule] = TimestepSchedule.uniform,
    ) -> None:
        self.weights = natural_corrections(kind)
        self._kind = kind
        self._table = StepTable(calibration, kind, own=own)
        self._changes_KK = step_changes(calibration.step_gram).mean(axis=0)
        self._sigmas_K = calibration.sigmas
        recorded = calibration.timesteps
        self._grid_M = np.linspace(recorded[0], recorded[-1], max(GRID_LEVELS, len(recorded)))
        self._costs: list[np.ndarray] = []
        self._found: dict[int, list[tuple[StepCandidate, float]]] = {}

    def uniform(self, num_steps: int) -> StepCandidate:
        """Evenly spaced corrected steps, however many."""
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
        if not 2 < num_steps < len(self._table.recorded_K) or not any(self.weights):
            return None
        objective = objectives_for(self._kind, "video")[0]
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
        changes, sigmas = self._changes(levels)
        if self._table.ends_noisy:
            path.append(len(levels))
        coefficients = error_coefficients(
            sigmas, path, candidate.schedule.corrections, ancestral=self._kind.ancestral
        )
        return float(coherent_error(changes, coefficients))

    def _searched(self, num_steps: int) -> list[StepCandidate]:
        levels = self._table.recorded_K
        thinned = np.unique(np.linspace(0, len(levels) - 1, _MOST_LEVELS).round().astype(int))
        grid = levels if len(levels) <= _MOST_LEVELS else levels[thinned]
        if not 2 < num_steps < len(grid):
            return []
        if not self._costs:
            changes, sigmas = self._changes(grid)
            self._costs = [
                corrected_cost(
                    changes,
                    sigmas,
                    weight,
                    ancestral=self._kind.ancestral,
                    c=c,
                    power=p,
                    ends_clean=self._table.ends_noisy,
                )
                for weight in self.weights
                for c, p in _DIVISORS
            ]
        ends = self._table.ends_noisy
        places = np.append(grid, grid[-1] - 2.0 * self._table.min_gap) if ends else grid
        paths = [
            grid[list(plan_pairs(cost, places, num_steps + ends)[:num_steps])]
            for cost in self._costs
        ]
        if self._table.takes_whole_timesteps:
            uniform = self._table.uniform(num_steps)
            sharp = [StepCandidate(self._schedule(timesteps), "searched") for timesteps in paths]
            return [blend(candidate, uniform, 0.5, True) for candidate in sharp]
        return [
            StepCandidate(self._schedule(_smoothed(timesteps)), "searched") for timesteps in paths
        ]

    def _changes(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The change table and levels at `timesteps`, with a level without noise behind them where
        the calibration ended at a noisy one.
        """
        scale = self._table.scale
        sigmas = scale.sigmas(timesteps)
        found = refine_changes(self._changes_KK, self._sigmas_K, sigmas, scale.position)
        return with_clean_level(found, sigmas) if self._table.ends_noisy else (found, sigmas)

    def _schedule(self, timesteps: np.ndarray) -> TimestepSchedule:
        return TimestepSchedule(tuple(float(t) for t in timesteps), scale=self._table.scale)

    def _corrected(self, candidate: StepCandidate) -> StepCandidate:
        """With the correction that is predicted to err least."""
        ways = [
            StepCandidate(candidate.schedule.corrected(weight), candidate.origin)
            for weight in self.weights
        ]
        return min(ways, key=self.predicted) if len(ways) > 1 else ways[0]


def _smoothed(timesteps: np.ndarray, times: int = 2) -> np.ndarray:
    """Every timestep between its neighbours moved towards their middle; still descending."""
    result = timesteps.astype(np.float64)
    for _ in range(times):
        result[1:-1] = (result[:-2] + 2.0 * result[1:-1] + result[2:]) / 4.0
    return result
