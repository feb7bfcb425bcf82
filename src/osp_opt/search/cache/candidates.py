"""Candidates for a wanted speed-up, and the race that decides among them.

The scores of `cache_scores` prune millions of policies to a few; those are really sampled, on a
few prompts first, and the losers dropped (successive halving, Jamieson and Talwalkar 2016,
arXiv 1502.07943). Errors are compared as logarithms and in pairs on the same videos, because one
video that tips over would otherwise decide a mean.

Suffixes: I intervals, S steps, B boundaries (blocks + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.quality.intervals import mean_ci
from osp_opt.search.cache.block_times import BlockTimes

__all__ = [
    "MAX_INTERVAL",
    "Candidate",
    "Race",
    "RaceResult",
    "four_field_candidates",
    "largest_ratio",
    "spread_candidates",
]

MAX_INTERVAL = 8  # a change older than 7 steps was never worth using in any run we saw
FIRST_LOOK = 0.6  # of the race's budget
PER_COST = 2  # starts kept per (number of blocks, interval): neighbours behave alike


@dataclass(frozen=True)
class Candidate:
    """A policy with its score (lower is better) and predicted speed-up of denoising."""

    policy: CachePolicy
    score: float
    speedup: float


def largest_ratio(times: BlockTimes, num_steps: int) -> tuple[float, CachePolicy]:
    """The largest predicted speed-up of any four-field policy, and a policy that has it."""
    intervals = _intervals(num_steps)
    speedups = _speedups(times, num_steps, intervals)
    i, s, a, b = np.unravel_index(int(np.nanargmax(speedups)), speedups.shape)
    policy = CachePolicy.four_field(int(a), int(b - a), int(s), intervals[int(i)])
    return float(speedups[i, s, a, b]), policy


def four_field_candidates(
    scores_ISBB: np.ndarray, times: BlockTimes, num_steps: int, ratio: float, limit: int
) -> list[Candidate]:
    """The `limit` best-scored policies predicted to reach `ratio`, best first.

    `scores_ISBB` are `four_field_scores` for the intervals 2..min(MAX_INTERVAL, steps). For each
    range and interval the latest step start that still reaches the ratio counts (an earlier one
    reuses more), or one less than an interval earlier: which steps at the end are reused depends
    on it. Of each number of blocks and interval only the best few ranges are kept, so that
    the race sees different kinds of policies. Raises PolicyError, naming the largest possible
    ratio, when none reaches it.
    """
    intervals = _intervals(num_steps)
    speedups = _speedups(times, num_steps, intervals)
    possible = float(np.nanmax(speedups))
    if possible < ratio:
        raise PolicyError(
            f"--ratio {ratio:g}: no cache policy is that fast here; the largest possible ratio is "
            f"{np.floor(possible * 100) / 100:.2f}"
        )
    reaches = np.nan_to_num(speedups, nan=0.0) >= ratio
    best: dict[tuple[int, int], list[Candidate]] = {}
    for i, interval in enumerate(intervals):
        # More steps are reused the earlier the start, so the last that reaches is the cheapest.
        latest = num_steps - 1 - np.argmax(reaches[i, ::-1], axis=0)
        for a, b in np.argwhere(reaches[i].any(axis=0)):
            last = int(latest[a, b])
            starts = np.arange(max(0, last - interval + 1), last + 1)
            start = int(starts[np.argmin(scores_ISBB[i, starts, a, b])])
            policy = CachePolicy.four_field(int(a), int(b - a), start, interval)
            candidate = Candidate(
                policy, float(scores_ISBB[i, start, a, b]), float(speedups[i, start, a, b])
            )
            best.setdefault((int(b - a), interval), []).append(candidate)
    kept = [c for group in best.values() for c in sorted(group, key=_by_score)[:PER_COST]]
    return sorted(kept, key=_by_score)[:limit]


def spread_candidates(
    scores_ISBB: np.ndarray,
    times: BlockTimes,
    num_steps: int,
    count: int,
    rng: np.random.Generator,
) -> list[Candidate]:
    """Up to `count` different policies of all costs, drawn whatever their score is.

    One near each of `count` speed-ups spread over what is possible; `scores_ISBB` as for
    `four_field_candidates`.
    """
    intervals = _intervals(num_steps)
    speedups = _speedups(times, num_steps, intervals)
    logs = np.nan_to_num(np.log(speedups), nan=np.inf)
    largest = float(np.log(np.nanmax(speedups)))
    found: dict[CachePolicy, Candidate] = {}
    for target in np.linspace(0.05 * largest, 0.95 * largest, count):
        distance = np.abs(logs - target)
        near = np.flatnonzero(distance <= max(0.02, float(distance.min())))
        i, start, a, b = np.unravel_index(int(rng.choice(near)), speedups.shape)
        policy = CachePolicy.four_field(int(a), int(b - a), int(start), intervals[int(i)])
        found[policy] = Candidate(
            policy, float(scores_ISBB[i, start, a, b]), float(speedups[i, start, a, b])
        )
    return list(found.values())


def _by_score(candidate: Candidate) -> float:
    return candidate.score


def _intervals(num_steps: int) -> tuple[int, ...]:
    return tuple(range(2, min(MAX_INTERVAL, num_steps) + 1))


def _speedups(times: BlockTimes, num_steps: int, intervals: Sequence[int]) -> np.ndarray:
    """Predicted speed-up of every four-field policy, [I, S, B, B]; NaN where it is not one."""
    before = times.cumulative
    saved_BB = before[None, :] - before[:, None]
    total = num_steps * times.step
    starts = np.arange(num_steps)
    speedups = np.full((len(intervals), num_steps, len(before), len(before)), np.nan)
    for i, interval in enumerate(intervals):
        after = num_steps - starts
        refreshes = -(-after // interval)
        reuses = after - refreshes
        seconds = total + times.add * (refreshes + reuses)[:, None, None]
        seconds = seconds - reuses[:, None, None] * saved_BB
        speedups[i] = np.where(reuses[:, None, None] > 0, total / seconds, np.nan)
    speedups[:, :, np.tril(np.ones_like(saved_BB, dtype=bool))] = np.nan
    return speedups


@dataclass(frozen=True)
class RaceResult:
    """What the race measured: errors[c][p] is the error of candidate c on prompt p."""

    winner: int
    errors: dict[int, dict[int, float]] = field(repr=False)
    ranking: tuple[int, ...] = ()


class Race:
    """Successive halving over candidates, by measured error.

    Args:
        costs: work of sampling one video with each candidate, in uncached videos (1 / speed-up).
        num_prompts: videos that a candidate can be measured on.
        budget: work in uncached videos that all measurements together may take.
        measure: errors (positive; mean squared) of (candidate, prompt) pairs, in order.
    """

    def __init__(
        self,
        costs: Sequence[float],
        num_prompts: int,
        budget: float,
        measure: Callable[[list[tuple[int, int]]], list[float]],
    ) -> None:
        if not costs or num_prompts < 1:
            raise PolicyError("a race needs at least one candidate and one prompt")
        self._costs = costs
        self._num_prompts = num_prompts
        self._budget = budget
        self._measure = measure

    def run(self) -> RaceResult:
        """Measure until one candidate is left, every prompt is used, or the budget is spent.

        Candidates come best-predicted first: when the budget does not allow to measure all of
        them once, the last ones are left out.
        """
        alive = self._affordable()
        errors: dict[int, dict[int, float]] = {c: {} for c in alive}
        spent, used = 0.0, 0
        # The first look takes most of the budget and half the prompts at most; then as many prompts
        # again for half the candidates, so that each further round costs half of it.
        first = FIRST_LOOK * self._budget / sum(self._costs[c] for c in alive)
        wanted = max(1, min(int(first + 1e-9), self._num_prompts // 2))
        while used < self._num_prompts and (len(alive) > 1 or used == 0):
            cost = sum(self._costs[c] for c in alive)
            room = int((self._budget - spent) / cost + 1e-9)
            fresh = min(wanted, self._num_prompts - used, max(room, 1 if used == 0 else 0))
            if fresh < 1:
                break
            pairs = [(c, p) for p in range(used, used + fresh) for c in alive]
            for (c, p), error in zip(pairs, self._measure(pairs), strict=True):
                errors[c][p] = error
            spent += fresh * cost
            used += fresh
            alive = self._survivors(alive, errors)
            wanted = max(1, used)
        order = sorted(errors, key=lambda c: (-len(errors[c]), _mean_log(errors[c])))
        return RaceResult(alive[0], errors, tuple(order))

    def _affordable(self) -> list[int]:
        alive: list[int] = []
        for candidate, cost in enumerate(self._costs):
            # A third of the budget for the first look leaves enough for the later rounds.
            if alive and sum(self._costs[c] for c in alive) + cost > self._budget / 3:
                break
            alive.append(candidate)
        return alive

    def _survivors(self, alive: list[int], errors: dict[int, dict[int, float]]) -> list[int]:
        """The better half, without those that are surely worse than the best."""
        ranked = sorted(alive, key=lambda c: _mean_log(errors[c]))
        best = errors[ranked[0]]
        kept = ranked[: max(1, (len(ranked) + 1) // 2)] if len(ranked) > 1 else ranked
        sure = [c for c in kept[1:] if _surely_worse(errors[c], best)]
        return [c for c in kept if c not in sure]


def _mean_log(errors: dict[int, float]) -> float:
    return float(np.mean([np.log(max(e, 1e-30)) for e in errors.values()]))


def _surely_worse(errors: dict[int, float], best: dict[int, float]) -> bool:
    common = sorted(set(errors) & set(best))
    if len(common) < 3:  # two prompts say nothing of the spread between prompts
        return False
    pairs = [np.log(max(errors[p], 1e-30) / max(best[p], 1e-30)) for p in common]
    return mean_ci(pairs).low > 0
