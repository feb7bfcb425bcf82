"""Align Your Steps (Sabour et al. 2024, arXiv 2404.14507): coordinate descent on a sampled KLUB.

Symbols: a step goes from timestep `high` to `low`; s is a noise level in between, c the early
stopping scale, W(s) = -1 / (s^2 + c^2) the weight's integral (see `step_objectives.klub_cost`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from osp_opt.base.errors import ScheduleError
from osp_opt.sampling.noise import search_rng
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of, timestep_of
from osp_opt.search.steps.objectives import DEFAULT_C
from osp_opt.search.steps.programme import MIN_GAP, spread_apart

__all__ = [
    "CoordinateDescent",
    "Interval",
    "KlubSampler",
    "PathDenoiser",
    "coarse_lengths",
]

Interval = tuple[float, float]  # timesteps (high, low)
CostOf = Callable[[list[Interval]], list[float]]

_COARSEST = 10  # AYS optimises ten steps first and refines from there
_MAX_SWEEPS = 50  # per reach; a bound only: descent usually rests after three to eight
_REACHES = (1.0, 0.4)  # candidates span this part of the way to the neighbours, then closer ones
_LEAST_GAIN = 0.002  # share of its two steps' cost for which a timestep moves: less is noise


class PathDenoiser(Protocol):
    """The denoised prediction on the noise path of a calibration video."""

    def __call__(self, video: int, sigma: float) -> Any:
        """D(x_s, s) of `video` with x_s on its one noise path: a tensor or array of any shape."""
        ...


class KlubSampler:
    """Monte Carlo estimates of the KLUB of single steps.

    ``int f dW = (W(high) - W(low)) * mean of f(s)`` with W(s) uniform in between: levels are
    drawn in proportion to the weight, so the importance weights are all equal and sum to one,
    and the estimate is unbiased. The same stratified numbers, videos and noise paths serve every
    step (common random numbers), so that candidates differ by what they are, not by luck.

    Args:
        denoise: the network on the calibration videos' paths.
        num_videos: V; iteration m uses video m modulo V.
        iterations: samples per estimate.
        seed: of the stratified numbers.
        c: early stopping scale.
        keep: predictions at step starts that are remembered (one network evaluation each).
    """

    def __init__(
        self,
        denoise: PathDenoiser,
        num_videos: int,
        iterations: int,
        seed: int,
        c: float = DEFAULT_C,
        keep: int = 64,
    ) -> None:
        self._denoise = denoise
        self._num_videos = num_videos
        self._c = c
        self._keep = keep
        jitter = search_rng(seed, "ays", "levels").random(iterations)
        strata = search_rng(seed, "ays", "strata").permutation(iterations)
        self._places = (strata + jitter) / iterations
        self._starts: OrderedDict[tuple[int, float], Any] = OrderedDict()
        self.evaluations = 0

    def __call__(self, high: float, low: float) -> float:
        """The estimated KLUB of a step from timestep `high` to `low`."""
        start, end = sigma_of(high), sigma_of(low)
        w_start, w_end = self._weight(start), self._weight(end)
        total = 0.0
        for m, place in enumerate(self._places):
            video = m % self._num_videos
            sigma = math.sqrt(-1.0 / (w_end + place * (w_start - w_end)) - self._c**2)
            change = self._evaluate(video, sigma) - self._start(video, start)
            total += float((change * change).mean())
        return (w_start - w_end) * total / len(self._places)

    def _weight(self, sigma: float) -> float:
        return -1.0 / (sigma * sigma + self._c * self._c)

    def _evaluate(self, video: int, sigma: float) -> Any:
        self.evaluations += 1
        return self._denoise(video, sigma)

    def _start(self, video: int, sigma: float) -> Any:
        key = (video, sigma)
        if key not in self._starts:
            self._starts[key] = self._evaluate(video, sigma)
            if len(self._starts) > self._keep:
                self._starts.popitem(last=False)
        self._starts.move_to_end(key)
        return self._starts[key]


def coarse_lengths(num_steps: int) -> list[int]:
    """Lengths from coarse to fine: each has a timestep between all neighbours of the one before."""
    lengths = [num_steps]
    while lengths[0] > _COARSEST:
        lengths.insert(0, (lengths[0] + 2) // 2)
    return lengths


@dataclass(frozen=True)
class CoordinateDescent:
    """Move one timestep at a time to the best of several candidates between its neighbours.

    Args:
        cost_of: costs of steps, several at once so that they can be shared out; deterministic.
        candidates: tried per timestep, besides where it is.
        neighbour_type: "uniform" spreads them evenly between the neighbours, "random" draws them.
        seed: of the random candidates.
        min_gap: smallest distance of neighbouring timesteps.
        progress: called with (steps, sweep, cost) after every sweep.
    """

    cost_of: CostOf
    candidates: int = 11
    neighbour_type: str = "uniform"
    seed: int = 0
    min_gap: float = MIN_GAP
    progress: Callable[[int, int, float], None] | None = None

    def search(self, num_steps: int) -> tuple[TimestepSchedule, float]:
        """Coarse to fine: the best schedule of `num_steps` steps found, and its cost.

        Starts from few uniform steps; a finished coarse schedule, read as a curve of log sigma
        over the position in the schedule, gives the start of the next finer one.
        """
        timesteps: np.ndarray | None = None
        cost = math.inf
        for length in coarse_lengths(num_steps):
            if timesteps is None:
                timesteps = np.array(TimestepSchedule.uniform(length).timesteps)
            else:
                timesteps = self._stretched(timesteps, length)
            timesteps, cost = self.descend(timesteps)
        assert timesteps is not None
        return TimestepSchedule(tuple(float(t) for t in timesteps)), cost

    def descend(self, timesteps: np.ndarray) -> tuple[np.ndarray, float]:
        """Sweep from `timesteps` (descending; both ends stay) until no timestep moves any more;
        then again with candidates closer by.
        """
        current = np.array(timesteps, dtype=np.float64)
        if len(current) < 2 or np.any(np.diff(current) >= 0):
            raise ScheduleError("coordinate descent: needs at least 2 descending timesteps")
        steps = self.cost_of(list(pairwise(current.tolist())))
        sweep = 0
        for reach in _REACHES:
            for _ in range(_MAX_SWEEPS):
                inner = range(1, len(current) - 1)
                moved = sum(self._move(current, steps, i, sweep, reach) for i in inner)
                if self.progress is not None:
                    self.progress(len(current), sweep, sum(steps))
                sweep += 1
                if not moved:
                    break
        return current, float(sum(steps))

    def _move(
        self, current: np.ndarray, steps: list[float], i: int, sweep: int, reach: float
    ) -> bool:
        """Put timestep `i` where its two steps cost least; whether that is somewhere else."""
        before, after = float(current[i - 1]), float(current[i + 1])
        low, high = after + self.min_gap, before - self.min_gap
        if high <= low:
            return False
        here = min(max(float(current[i]), low), high)
        low, high = here - reach * (here - low), here + reach * (high - here)
        tried = self._candidates(low, high, len(current), i, sweep)
        costs = self.cost_of([step for t in tried for step in ((before, t), (t, after))])
        pairs = list(zip(costs[0::2], costs[1::2], strict=True))
        best = min(range(len(tried)), key=lambda k: sum(pairs[k]))
        if sum(pairs[best]) >= (1.0 - _LEAST_GAIN) * (steps[i - 1] + steps[i]):
            return False
        current[i] = tried[best]
        steps[i - 1], steps[i] = pairs[best]
        return True

    def _candidates(self, low: float, high: float, length: int, i: int, sweep: int) -> list[float]:
        if self.neighbour_type == "random":
            rng = search_rng(self.seed, "ays", "candidates", length, i, sweep)
            return [float(t) for t in rng.uniform(low, high, self.candidates)]
        return [float(t) for t in np.linspace(low, high, self.candidates)]

    def _stretched(self, timesteps: np.ndarray, length: int) -> np.ndarray:
        place = np.linspace(0.0, 1.0, length)
        log_sigma = np.interp(place, np.linspace(0, 1, len(timesteps)), np.log(sigma_of(timesteps)))
        finer = timestep_of(np.exp(log_sigma))
        finer[0], finer[-1] = timesteps[0], timesteps[-1]
        return spread_apart(finer, self.min_gap)
