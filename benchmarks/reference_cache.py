r"""The reference tool's two-stage cache search (FACTS section 3), on raw frames, as a baseline.

The interval is fixed at 2. Stage 1 tries every start from block 1 on (block 0 never is) with the
least number of blocks and step start 5; stage 2 tries up to 8 numbers of blocks with step start 0
and 5 for the best 3 starts. The objective is the mean squared error of the finished frames against
the uncached video, here of raw frames where the tool compares mp4 files. At 32 blocks, 100 steps
and a ratio of 1.3 these rules give exactly FACTS' cost: 63 generations, 46 in block work.

The least number of blocks is a formula that rounds down and takes half of the steps behind the
start as reused, so that the ratio asked for is not delivered (32 blocks: 15, which is 1.283).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from osp_opt.cache.policy import CachePolicy

__all__ = ["CacheSearch", "SearchResult", "least_blocks"]

INTERVAL = 2
STEP_STARTS = (0, 5)
STAGE_ONE_START = 5
LENGTHS = 8
FINALISTS = 3
FEWEST = 2  # the tool crashes with one block


def least_blocks(num_blocks: int, num_steps: int, ratio: float) -> int:
    """The number of blocks its formula takes for `ratio`."""
    saved = num_blocks * num_steps * (1.0 - 1.0 / ratio)
    reused_steps = (num_steps - STAGE_ONE_START) / INTERVAL
    return min(max(FEWEST, math.floor(saved / reused_steps)), num_blocks - 1)


@dataclass(frozen=True)
class SearchResult:
    """What was found, with the work per prompt: in generations, and in block work."""

    policy: CachePolicy
    error: float
    generations: int
    equivalents: float


@dataclass(frozen=True)
class CacheSearch:
    """The two stages; `measure` gives the errors (mean squared, over prompts) of policies."""

    num_blocks: int
    num_steps: int
    measure: Callable[[Sequence[CachePolicy]], Sequence[float]]

    def search(self, num: int) -> SearchResult:
        """Search with `num` blocks as the least number (see `least_blocks`)."""
        starts = range(1, self.num_blocks - num + 1)
        first = [_policy(start, num, STAGE_ONE_START) for start in starts]
        errors = dict(zip(first, self.measure(first), strict=True))
        best = sorted(first, key=lambda policy: errors[policy])[:FINALISTS]
        second = [
            _policy(_start(policy), length, step_start)
            for policy in best
            for length in range(num, min(num + LENGTHS, self.num_blocks - _start(policy) + 1))
            for step_start in STEP_STARTS
        ]
        fresh = [policy for policy in second if policy not in errors]
        errors |= dict(zip(fresh, self.measure(fresh), strict=True))
        winner = min(errors, key=lambda policy: errors[policy])
        work = [1.0 / policy.speedup(self.num_blocks, self.num_steps) for policy in errors]
        return SearchResult(winner, errors[winner], 1 + len(errors), 1.0 + sum(work))


def _policy(start: int, num: int, step_start: int) -> CachePolicy:
    return CachePolicy.four_field(start, num, step_start, INTERVAL)


def _start(policy: CachePolicy) -> int:
    assert policy.rule is not None
    return policy.rule.block_start
