"""Candidates for a wanted speed-up: the scores prune millions of policies to a few to be sampled.

Suffixes: I intervals, S steps, B boundaries (blocks + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.search.cache.block_times import BlockTimes

__all__ = [
    "MAX_INTERVAL",
    "Candidate",
    "four_field_candidates",
    "largest_ratio",
]

MAX_INTERVAL = 8  # a change older than 7 steps was never worth using in any run we saw
PER_COST = 2  # starts kept per (number of blocks, interval): neighbours behave alike


@dataclass(frozen=True)
class Candidate:
    """A policy with its score (lower is better) and predicted speed-up of denoising."""

    policy: CachePolicy
    score: float
    speedup: float


def largest_ratio(
    times: BlockTimes, num_steps: int, scores_ISBB: np.ndarray | None = None
) -> tuple[float, CachePolicy]:
    """The largest predicted speed-up of any four-field policy, and a policy that has it; with
    `scores_ISBB` of those whose score is finite, which reuse nothing across two transformers.
    """
    intervals = intervals_of(num_steps)
    speedups = _speedups(times, num_steps, intervals)
    if scores_ISBB is not None:
        speedups = np.where(np.isfinite(scores_ISBB), speedups, np.nan)
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
    intervals = intervals_of(num_steps)
    speedups = _speedups(times, num_steps, intervals)
    speedups = np.where(np.isfinite(scores_ISBB), speedups, np.nan)
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


def _by_score(candidate: Candidate) -> float:
    return candidate.score


def intervals_of(num_steps: int) -> tuple[int, ...]:
    """Of four-field policies for so many steps."""
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
