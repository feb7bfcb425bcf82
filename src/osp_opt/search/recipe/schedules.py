"""Schedules of corrected steps for any length, and what they are predicted to err by.

With fresh noise on the way a step makes up for the one before it (`trapezoid.py`), and one
programme finds the levels. Without it predictions are smooth and a step extrapolates them
(`pairs.py`): several weights and costs are tried, of which none is right for every model. The
coherent error (`search/steps/coherent.py`) chooses among what is found. Suffix: K recorded levels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import numpy as np

from osp_opt.base.samplers import SamplerKind
from osp_opt.calibration import Calibration
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.recipe.pairs import PairProgramme, corrected_cost
from osp_opt.search.recipe.trapezoid import trapezoid_cost, trapezoid_weights
from osp_opt.search.steps.candidates import StepCandidate, StepTable, blend, objectives_for
from osp_opt.search.steps.programme import StepPlan, plan_steps

__all__ = ["CorrectedSchedules"]

_MOST_LEVELS = 128  # of the programme's grid: its time and memory grow with their cube


# Without fresh noise, what is tried of the table: weights of the two-step rule, and how fast errors
# fade with noise (c, power). How much of the rule is right differs between models and spacings: on
# one of flow matching half a correction of its own steps was 3 dB better than none and a full one
# 5 dB worse, and three quarters of it on searched steps 5 to 14 dB better.
_WEIGHTS = (0.25, 0.5, 0.75, 1.0)
_DIVISORS = ((0.5, 0.0), (0.5, 0.5), (0.5, 1.0), (2.0, 1.0))


class CorrectedSchedules:
    """Candidates of each length, best-predicted first, from the recorded table.

    What is searched ends where the recorded run did. The table tells little of the end of a run
    that ends at a noisy level: there a prediction follows the sample, the errors of earlier steps
    included. Schedules of 25 steps that were left free to end earlier did at 67 of 1000 in place of
    9, predicted to lose nothing, and lost 5 to 7 dB of the latents. With fresh noise it is used as
    found; without, it is also tried smooth: every timestep moved towards its neighbours (where a
    sampler takes whole ones only, half-way to uniform). Uniform are, of other models, the steps of
    their scheduler's `own`.
    """

    def __init__(
        self,
        calibration: Calibration,
        kind: SamplerKind,
        own: Callable[[int], TimestepSchedule] = TimestepSchedule.uniform,
    ) -> None:
        self._kind = kind
        self._table = StepTable(calibration, kind, own=own)
        self._found: dict[int, list[tuple[StepCandidate, float]]] = {}

    @property
    def corrects(self) -> bool:
        """Whether steps can be corrected."""
        return self._kind.takes_corrections

    def uniform(self, num_steps: int) -> StepCandidate:
        """Evenly spaced steps, however many, with the correction that is predicted to err least."""
        plain = self._table.uniform(num_steps)
        if not self.corrects:
            return plain
        if self._kind.ancestral:
            return _made_up_for(plain)
        return min((_corrected(plain, weight) for weight in _WEIGHTS), key=self.predicted)

    def of_length(self, num_steps: int) -> list[tuple[StepCandidate, float]]:
        """Uniform and the best searched schedule, both corrected, with their predicted errors."""
        if num_steps not in self._found:
            uniform = self.uniform(num_steps)
            candidates = [uniform]
            searched = [
                candidate
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
        if not 2 < num_steps < len(self._table.recorded_K) or not self.corrects:
            return None
        objective = self._table.by_trust(objectives_for(self._kind, "video"), num_steps)[0]
        candidate = StepCandidate(
            self._table.best(objective, num_steps).schedule, "searched, not corrected"
        )
        return candidate, self.predicted(candidate)

    def predicted(self, candidate: StepCandidate) -> float:
        """Mean squared error of the finished latents, in the unit of the recorded predictions."""
        return self._table.coherent(candidate.schedule)

    def _searched(self, num_steps: int) -> list[StepCandidate]:
        if not (self.corrects and 2 < num_steps < len(self._grid)):
            return []
        if self._kind.ancestral:
            timesteps = self._grid[list(self._trapezoids.path(num_steps))]
            return [_made_up_for(StepCandidate(self._schedule(timesteps), "searched"))]
        found = []
        for weight, programme in self._programmes:
            forms = self._forms(self._grid[list(programme.path(num_steps))])
            found += [_corrected(candidate, weight) for candidate in forms]
        return found

    def _forms(self, timesteps: np.ndarray) -> list[StepCandidate]:
        """What was found, and the same smoothed."""
        sharp = StepCandidate(self._schedule(timesteps), "searched")
        if self._table.takes_whole_timesteps:
            return [sharp, blend(sharp, self._table.uniform(len(timesteps)), 0.5, True)]
        return [sharp, StepCandidate(self._schedule(_smoothed(timesteps)), "searched")]

    @cached_property
    def _grid(self) -> np.ndarray:
        levels = self._table.recorded_K
        thinned = np.unique(np.linspace(0, len(levels) - 1, _MOST_LEVELS).round().astype(int))
        return levels if len(levels) <= _MOST_LEVELS else levels[thinned]

    @cached_property
    def _programmes(self) -> list[tuple[float, PairProgramme]]:
        """One for each cost that is tried, with its correction; they hold all lengths."""
        changes, sigmas = self._recorded
        found = []
        for weight, (c, power) in itertools.product(_WEIGHTS, _DIVISORS):
            cost = corrected_cost(changes, sigmas, weight, c=c, power=power)
            found.append((weight, PairProgramme(cost, self._grid, self._table.min_gap)))
        return found

    @cached_property
    def _trapezoids(self) -> StepPlan:
        cost = trapezoid_cost(*self._recorded)
        return plan_steps(cost, self._grid, len(self._grid), self._table.min_gap)

    @property
    def _recorded(self) -> tuple[np.ndarray, np.ndarray]:
        """The change table [K, K] and the levels [K] on the programme's grid."""
        changes, sigmas = self._table.changes_at(self._grid)
        k = len(self._grid)
        return changes[:k, :k], sigmas[:k]

    def _schedule(self, timesteps: np.ndarray) -> TimestepSchedule:
        return TimestepSchedule(tuple(float(t) for t in timesteps), scale=self._table.scale)


def _corrected(candidate: StepCandidate, weight: float) -> StepCandidate:
    return StepCandidate(candidate.schedule.corrected(weight), candidate.origin)


def _made_up_for(candidate: StepCandidate) -> StepCandidate:
    """With every step but the last made up for by the next."""
    schedule = candidate.schedule
    corrections = trapezoid_weights(schedule.sigmas[:-1])
    return StepCandidate(replace(schedule, corrections=corrections), candidate.origin)


def _smoothed(timesteps: np.ndarray, times: int = 2) -> np.ndarray:
    """Every timestep between its neighbours moved towards their middle; still descending."""
    result = timesteps.astype(np.float64)
    for _ in range(times):
        result[1:-1] = (result[:-2] + 2.0 * result[1:-1] + result[2:]) / 4.0
    return result
