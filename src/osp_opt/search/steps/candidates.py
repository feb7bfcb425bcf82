"""From a calibration to candidate schedules: the table, its refinement, the shortlist.

Suffixes: P videos, K recorded levels, M levels of the refined grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from osp_opt.base.errors import ScheduleError
from osp_opt.base.samplers import SAMPLER_KINDS, SamplerKind
from osp_opt.calibration import Calibration, step_changes
from osp_opt.quality.intervals import Interval, mean_ci
from osp_opt.sampling.schedule import TimestepSchedule, own_scale
from osp_opt.search.steps.coherent import DATA_SCALE, coherent_error, error_coefficients
from osp_opt.search.steps.objectives import StepObjective, refine_changes
from osp_opt.search.steps.programme import MIN_GAP, StepPlan, path_cost, plan_steps

__all__ = [
    "GRID_LEVELS",
    "Objective",
    "StepCandidate",
    "StepTable",
    "blend",
    "objectives_for",
]

GRID_LEVELS = 400  # of the refined grid; finer changes nothing, coarser costs up to a tenth

_KLUB = tuple(StepObjective("klub", c) for c in (0.5, 0.3, 0.7))
_PATHWISE = tuple(StepObjective("pathwise", c, p) for c, p in ((0.5, 0.5), (10.0, 0.5), (0.5, 1.0)))
_DETERMINISTIC = tuple(StepObjective("deterministic", 0.5, p) for p in (0.0, 0.25, 0.5))
_NO_NOISE = 1e-6  # of the last level: 1 / sigma, the clock, has to be finite
_SAME_RMS = 0.5  # schedules nearer than this, in timesteps, are not worth telling apart


def objectives_for(
    sampler: str | SamplerKind, objective: str = "auto"
) -> tuple[StepObjective, ...]:
    """The costs worth trying, the most trusted first.

    `objective` is "distribution" (KLUB), "video" (pathwise) or "auto" (both). Deterministic
    samplers have their own cost, of Euler steps along the probability-flow equation: on the
    Gaussian model and the table that calibrate records, KLUB's schedules are worse than uniform
    for Euler (10 steps: .0285 against .0253) and this cost's better (.0154). On the bundled model
    neither beats uniform for Euler, and for second-order samplers KLUB does and this cost need not
    (`python -m benchmarks samplers`). So "auto" tries both; sampling decides.
    """
    kind = _kind(sampler)
    if not kind.ancestral:
        if objective != "auto":
            return _DETERMINISTIC
        if kind.order > 1:
            return (_KLUB[0], *_DETERMINISTIC)
        return (_DETERMINISTIC[0], _KLUB[0], *_DETERMINISTIC[1:])
    return {"distribution": _KLUB, "video": _PATHWISE}.get(objective, (_KLUB[0], *_PATHWISE))


@dataclass(frozen=True)
class StepCandidate:
    """A schedule and where it comes from: "uniform", of other models "the scheduler's own", an
    objective's label, ...
    """

    schedule: TimestepSchedule
    origin: str


class Objective(Protocol):
    """A hashable cost: a `StepObjective`, or several of them weighed by measurements."""

    def __call__(self, changes_KK: np.ndarray, sigmas_K: np.ndarray) -> np.ndarray: ...

    @property
    def label(self) -> str: ...

    @property
    def follows_reference(self) -> bool: ...


class StepTable:
    """The change tables of all videos on a refined grid of levels, ready for planning.

    Args:
        calibration: the recorded Gram matrices.
        sampler: whose schedules are wanted, by name or by what it is; some take whole timesteps
            only.
        levels: of the refined grid, evenly spaced in timesteps.
        min_gap: smallest distance of neighbouring timesteps.
        own: the sampler's own schedule of so many steps, which every other has to beat; by default
            evenly spaced timesteps.

    A run that ends at a noisy level takes its last prediction for the clean video. Where the
    calibration's did, a level without noise is added behind it at which the prediction is the last
    one, as it is at all levels between: steps to it are as wrong as they are, and a schedule may
    end at any level, also below the recorded ones, as those of more steps do.
    """

    def __init__(
        self,
        calibration: Calibration,
        sampler: str | SamplerKind = "EulerAncestralDiscrete",
        levels: int = GRID_LEVELS,
        min_gap: float = MIN_GAP,
        own: Callable[[int], TimestepSchedule] = TimestepSchedule.uniform,
    ) -> None:
        self.kind = _kind(sampler)
        self.min_gap = min_gap
        self.scale = calibration.scale
        self._own = own
        self.ends_noisy = self.scale != own_scale() and calibration.timesteps[-1] > 0
        self._sigmas_K = calibration.sigmas
        self._changes_PKK = step_changes(calibration.step_gram)
        self._mean_KK = self._changes_PKK.mean(axis=0)
        self._data_scale = DATA_SCALE if self.kind.ancestral else calibration.data_scale
        recorded = calibration.timesteps
        grid = np.linspace(recorded[0], recorded[-1], max(levels, len(recorded)))
        if self.takes_whole_timesteps:
            recorded, grid = (_rounded(timesteps) for timesteps in (recorded, grid))
        self.recorded_K: np.ndarray = recorded
        self.timesteps_M: np.ndarray = grid
        self._max_steps = len(calibration.timesteps)
        self._plans: dict[Objective, StepPlan] = {}
        self._shared: dict[
            tuple[object, ...], tuple[np.ndarray, np.ndarray, list[tuple[int, ...]]]
        ] = {}
        self._costs: dict[tuple[TimestepSchedule, Objective], np.ndarray] = {}

    def grid(self, objective: Objective) -> np.ndarray:
        """Where the timesteps of `objective`'s schedules may lie.

        A video that stays close to the full-length one takes its steps where that one took them:
        on the Gaussian model 50 of its 100 levels come 20 times closer than 50 of 400.
        """
        return self.recorded_K if objective.follows_reference else self.timesteps_M

    def plan(self, objective: Objective) -> StepPlan:
        """The optimal paths for every number of steps up to the calibration's, made once."""
        if objective not in self._plans:
            grid = self.grid(objective)
            changes, sigmas = self._changes(grid)
            cost = objective(changes.mean(0), sigmas)
            if self.ends_noisy:
                grid = np.append(grid, grid[-1] - 2.0 * self.min_gap)
            self._plans[objective] = plan_steps(
                cost, grid, self._max_steps + self.ends_noisy, self.min_gap
            )
        return self._plans[objective]

    def best(self, objective: Objective, num_steps: int) -> StepCandidate:
        """The schedule of `num_steps` steps with the least cost. Raises ScheduleError."""
        path = self.plan(objective).path(num_steps + self.ends_noisy)[:num_steps]
        timesteps = tuple(float(t) for t in self.grid(objective)[list(path)])
        return StepCandidate(TimestepSchedule(timesteps, scale=self.scale), objective.label)

    def uniform(self, num_steps: int) -> StepCandidate:
        """The evenly spaced schedule that every other has to beat."""
        own = self._own(num_steps)
        if own.scale != own_scale():
            return StepCandidate(own, "the scheduler's own")
        timesteps = own.timesteps
        if self.takes_whole_timesteps:
            timesteps = tuple(float(round(t)) for t in timesteps)
        # Not the sampler's own default spacing: what a schedule file would hold.
        return StepCandidate(TimestepSchedule(timesteps), "uniform")

    def costs(self, schedule: TimestepSchedule, objective: Objective) -> np.ndarray:
        """The estimated error of `schedule` for each video, [P].

        Its levels join the refined grid, so that steps are integrated as finely as they were
        planned and no schedule is favoured by lying on the grid.
        """
        if (schedule, objective) not in self._costs:
            self._costs[schedule, objective] = self._cost_of(schedule, objective)
        return self._costs[schedule, objective]

    def coherent(self, schedule: TimestepSchedule) -> float:
        """The predicted mean square of a finished video's error, its corrections and all (see
        `coherent`), in the unit of the recorded predictions.

        Of 41 schedules of 25, 12 and 8 steps, plain and corrected, of a flow-matching model
        (docs/second-model.md) it ranks those of one length at Spearman .88, .91, .97, and the one
        it puts first was at most .8 dB worse than the best. (With the ancestral steps' c: .67, .46,
        .70.)
        """
        own = np.array(schedule.timesteps)
        levels = np.unique(np.concatenate([self.timesteps_M, own]))[::-1]
        place = {float(t): i for i, t in enumerate(levels)}
        path = [*(place[float(t)] for t in own), *((len(levels),) if self.ends_noisy else ())]
        changes, sigmas = self.changes_at(levels)
        coefficients = error_coefficients(
            sigmas,
            path,
            schedule.corrections,
            ancestral=self.kind.ancestral,
            c=self._data_scale,
        )
        return float(coherent_error(changes, coefficients))

    def by_trust(
        self, objectives: Sequence[StepObjective], num_steps: int
    ) -> tuple[StepObjective, ...]:
        """`objectives` in the order in which to try them.

        Of costs of deterministic steps none is right for every model: how fast errors fade with
        noise differs. So their best schedules' coherent errors say. Others keep their order.
        """
        if self.kind.ancestral or self.kind.order > 1:
            return tuple(objectives)
        return tuple(
            sorted(objectives, key=lambda each: self.coherent(self.best(each, num_steps).schedule))
        )

    def changes_at(self, timesteps_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean change table [M, M] over the videos and the levels [M] at `timesteps_M`, with
        the level without noise behind them where the calibration ended at a noisy one.
        """
        return self._refined(self._mean_KK, timesteps_M)

    def _cost_of(self, schedule: TimestepSchedule, objective: Objective) -> np.ndarray:
        levels, (path,) = self._joined([schedule], objective)
        changes, sigmas = self._changes(levels)
        return np.array([path_cost(objective(video_MM, sigmas), path) for video_MM in changes])

    def mean_costs(self, schedules: Sequence[TimestepSchedule], objective: Objective) -> np.ndarray:
        """The estimated error of several schedules, mean over videos, on one grid for all."""
        key = (objective.follows_reference, *schedules)
        if key not in self._shared:
            levels, paths = self._joined(schedules, objective)
            changes, sigmas = self._changes(levels)
            self._shared = {key: (changes.mean(0), sigmas, paths)}
        changes_MM, sigmas, paths = self._shared[key]
        cost = objective(changes_MM, sigmas)
        return np.array([path_cost(cost, path) for path in paths])

    def _joined(
        self, schedules: Sequence[TimestepSchedule], objective: Objective
    ) -> tuple[np.ndarray, list[tuple[int, ...]]]:
        """The objective's grid with the schedules' own levels in it, and their paths through it."""
        own = [np.array(schedule.timesteps) for schedule in schedules]
        levels = np.unique(np.concatenate([self.grid(objective), *own]))[::-1]
        lowest = 0.0 if self.ends_noisy else self.timesteps_M[-1]
        levels = levels[(levels <= self.timesteps_M[0]) & (levels >= lowest)]
        place = {float(t): i for i, t in enumerate(levels)}
        missing = [t for timesteps in own for t in timesteps if float(t) not in place]
        if missing:
            raise ScheduleError(f"timesteps {missing[:3]} lie outside the calibrated range")
        end = (len(levels),) if self.ends_noisy else ()
        return levels, [(*(place[float(t)] for t in timesteps), *end) for timesteps in own]

    def advantage(
        self, schedule: TimestepSchedule, other: TimestepSchedule, objective: Objective
    ) -> Interval:
        """Log of `schedule`'s estimated error over `other`'s: mean over videos, with interval."""
        ratio = np.log(self.costs(schedule, objective) / self.costs(other, objective))
        return mean_ci([float(value) for value in ratio])

    def shortlist(
        self, num_steps: int, objectives: Sequence[StepObjective], limit: int | None = None
    ) -> list[StepCandidate]:
        """Uniform first, then each objective's best and half-way blends, without near twins.

        A blend with uniform keeps what both agree on; where few steps make an objective overreach
        it is often the best of the three.
        """
        uniform = self.uniform(num_steps)
        found = [self.best(objective, num_steps) for objective in objectives]
        blends = [
            blend(candidate, uniform, 0.5, self.takes_whole_timesteps) for candidate in found[:2]
        ]
        kept = [uniform]
        for candidate in [*found, *blends]:
            if not self.has_twin(candidate, kept):
                kept.append(candidate)
        return kept[:limit]

    def has_twin(self, candidate: StepCandidate, others: Sequence[StepCandidate]) -> bool:
        """Whether `candidate` is next to the same as one of `others`."""
        return any(_distance(candidate, other) <= _SAME_RMS for other in others)

    @property
    def takes_whole_timesteps(self) -> bool:
        """Whether the sampler rounds timesteps."""
        return self.kind.timesteps == "whole"

    def _changes(self, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for every video, [P, M, M]."""
        return self._refined(self._changes_PKK, timesteps)

    def _refined(self, changes: np.ndarray, timesteps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sigmas = self.scale.sigmas(timesteps)
        known = np.maximum(sigmas, self._sigmas_K[-1]) if self.ends_noisy else sigmas
        found = refine_changes(changes, self._sigmas_K, known, self.scale.position)
        if not self.ends_noisy:
            return found, sigmas
        sides = [(0, 0)] * (found.ndim - 2) + [(0, 1), (0, 1)]
        return np.pad(found, sides, mode="edge"), np.append(sigmas, sigmas[-1] * _NO_NOISE)


def blend(
    one: StepCandidate, other: StepCandidate, weight: float, whole: bool = False
) -> StepCandidate:
    """Timesteps ``(1 - weight)`` of `one` and `weight` of `other`, which stay ordered."""
    mixed = (1.0 - weight) * np.array(one.schedule.timesteps) + weight * np.array(
        other.schedule.timesteps
    )
    if whole and len(np.unique(np.round(mixed))) == len(mixed):
        mixed = np.round(mixed)
    timesteps = tuple(float(t) for t in mixed)
    scale = one.schedule.scale
    return StepCandidate(
        TimestepSchedule(timesteps, scale=scale),
        f"{1 - weight:g} {one.origin} + {weight:g} {other.origin}",
    )


def _kind(sampler: str | SamplerKind) -> SamplerKind:
    return SAMPLER_KINDS[sampler] if isinstance(sampler, str) else sampler


def _rounded(timesteps: np.ndarray) -> np.ndarray:
    """Whole timesteps, each once, none outside the range."""
    whole: np.ndarray = np.unique(np.round(timesteps))[::-1]
    inside: np.ndarray = whole[(whole <= timesteps[0]) & (whole >= timesteps[-1])]
    return inside


def _distance(one: StepCandidate, other: StepCandidate) -> float:
    difference = np.array(one.schedule.timesteps) - np.array(other.schedule.timesteps)
    return float(np.sqrt(np.mean(difference**2)))
