"""The best schedule of every length on a grid of noise levels, by dynamic programming."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from osp_opt.base.errors import ScheduleError

__all__ = ["MIN_GAP", "StepPlan", "path_cost", "plan_steps", "spread_apart"]

# Smallest distance of neighbouring timesteps (of 1000). Below one training step the schedule file
# still holds the numbers, but samplers that round timesteps would evaluate one of them twice.
MIN_GAP = 1.0


@dataclass(frozen=True)
class StepPlan:
    """Optimal paths through K levels for every number of network evaluations up to a limit.

    costs: [n + 1] optimal cost with n levels visited, infinite where impossible (index = n).
    paths: per n, the visited levels' indices, from 0 to K - 1; None where impossible.
    """

    costs: np.ndarray
    paths: tuple[tuple[int, ...] | None, ...]

    def path(self, num_steps: int) -> tuple[int, ...]:
        """The levels visited with `num_steps` evaluations. Raises ScheduleError if impossible."""
        found = self.paths[num_steps] if 0 <= num_steps < len(self.paths) else None
        if found is None:
            possible = [n for n, path in enumerate(self.paths) if path is not None]
            span = f"{possible[0]} to {possible[-1]}" if possible else "none"
            raise ScheduleError(
                f"no schedule of {num_steps} steps on this grid with this minimum gap "
                f"(possible: {span})"
            )
        return found


def plan_steps(
    cost_KK: np.ndarray,
    timesteps_K: np.ndarray,
    max_steps: int,
    min_gap: float = MIN_GAP,
) -> StepPlan:
    """Minimise the sum of ``cost_KK[i, j]`` over paths from level 0 to level K - 1.

    A path of n levels is a schedule of n network evaluations (the step from the last level to
    sigma 0 costs the same for all). ``best_n[i] = min_j cost[i, j] + best_{n-1}[j]``, so one pass
    of O(K^2) per n serves every length at once, exactly.

    Args:
        cost_KK: cost of a step from i to j; infinite where not allowed.
        timesteps_K: of the levels, descending.
        max_steps: largest n.
        min_gap: neighbours nearer than this, in timesteps, are not allowed.
    """
    k = len(timesteps_K)
    near = timesteps_K[:, None] - timesteps_K[None, :] < min_gap - 1e-9
    cost = np.where(near | ~np.isfinite(cost_KK), np.inf, cost_KK)
    best = np.full(k, np.inf)
    best[-1] = 0.0
    nexts: list[np.ndarray] = []
    costs = [np.inf, np.inf]
    paths: list[tuple[int, ...] | None] = [None, None]
    total = np.empty_like(cost)
    for _ in range(2, max_steps + 1):
        np.add(cost, best, out=total)
        following = total.argmin(axis=1)
        best = total[np.arange(k), following]
        nexts.append(following)
        costs.append(float(best[0]))
        paths.append(_follow(nexts) if np.isfinite(best[0]) else None)
    return StepPlan(np.array(costs[: max_steps + 1]), tuple(paths[: max_steps + 1]))


def path_cost(cost_KK: np.ndarray, path: tuple[int, ...]) -> float:
    """The sum of the steps' costs along `path`."""
    return float(sum(cost_KK[i, j] for i, j in itertools.pairwise(path)))


def spread_apart(timesteps: np.ndarray, min_gap: float) -> np.ndarray:
    """`timesteps` moved apart to at least `min_gap`, both ends kept. Raises ScheduleError."""
    n = len(timesteps)
    if timesteps[0] - timesteps[-1] < (n - 1) * min_gap:
        raise ScheduleError(f"{n} timesteps do not fit with a gap of {min_gap:g}")
    room = np.arange(n) * min_gap  # without the gaps the order may only stay or tie
    loose: np.ndarray = np.minimum.accumulate(timesteps + room)
    bound: Sequence[float] = [timesteps[0], timesteps[-1] + room[-1]]
    apart: np.ndarray = loose.clip(min(bound), max(bound)) - room
    return apart


def _follow(nexts: list[np.ndarray]) -> tuple[int, ...]:
    path = [0]
    for following in reversed(nexts):
        path.append(int(following[path[-1]]))
    return tuple(path)
