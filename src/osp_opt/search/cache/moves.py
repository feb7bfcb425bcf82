"""What is reused together: the negative branch at regular steps, and blocks where it is cheap.

Suffixes: S steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.search.cache.block_times import BlockTimes
from osp_opt.search.cache.runs import best_runs, run_ranges
from osp_opt.search.cache.scores import ReuseErrors, policy_score

__all__ = ["MOVES", "Move", "guidance_alone", "guided_plans", "plan_reuse"]

INTERVALS = (2, 3, 4)  # of both branches, for a wanted speed

FIRST_BOTH = 2  # steps 0 to 2 run both branches: a forecast needs two that did

SPARED = 3  # steps at the end that reuse no blocks: what errs there is not taken back any more


@dataclass(frozen=True)
class Move:
    """guidance: the negative branch runs at every so many steps (1: at all). blocks: how many times
    faster reused blocks shall make the rest, by predicted time (1: none are reused).
    """

    guidance: int = 1
    blocks: float = 1.0

    def __str__(self) -> str:
        told = []
        if self.guidance > 1:
            told.append(f"guidance at every {'2nd' if self.guidance == 2 else '3rd'} step")
        if self.blocks > 1.0:
            told.append(f"blocks reused, {self.blocks:g}x")
        return ", ".join(told) or "nothing reused"


MOVES: tuple[Move, ...] = (
    *(Move(), Move(2), Move(3), Move(1, 1.2), Move(2, 1.2), Move(1, 1.45)),
    *(Move(3, 1.2), Move(2, 1.45), Move(3, 1.45)),
)
"""What is tried, the mildest first."""


def plan_reuse(
    move: Move, errors: ReuseErrors, importance_S: np.ndarray, times: BlockTimes
) -> CachePolicy | None:
    """The policy of `move` for the steps that `errors` describe; None where there is none.

    With both moves, blocks are reused at steps that run the positive branch alone.
    """
    steps = errors.num_steps
    plain = guidance_alone(move, steps, errors.first_step)
    if plain is None or move.blocks == 1.0:
        return plain
    ratio = times.speedup(plain, steps) * move.blocks
    spared = 0 if plain.guidance is None else SPARED
    plans = [
        best_runs(errors, importance_S, times, ratio, blocks, 1, plain.guidance, spared)
        for blocks in run_ranges(errors.num_blocks)
    ]
    found = [plan for plan in plans if plan is not None]
    return min(found, key=lambda plan: policy_score(plan, errors, importance_S), default=None)


def guided_plans(
    errors: ReuseErrors, importance_S: np.ndarray, times: BlockTimes, ratio: float
) -> list[CachePolicy]:
    """Policies that reuse guidance, each at another interval, and as many blocks beside it as it
    takes to be `ratio` times as fast; those that cannot be are left out.
    """
    steps, found = errors.num_steps, []
    for interval in INTERVALS:
        alone = guidance_alone(Move(interval), steps, errors.first_step)
        if alone is not None:
            missing = ratio / times.speedup(alone, steps)
            plan = plan_reuse(Move(interval, max(1.0, missing)), errors, importance_S, times)
            if plan is not None:
                found.append(plan)
    return found


def guidance_alone(move: Move, steps: int, first_step: int = 0) -> CachePolicy | None:
    """The policy of `move` without its blocks; None where there are too few steps for it. At
    `first_step`, of a second transformer, both branches run.
    """
    if move.guidance == 1:
        return CachePolicy.explicit({}, steps)
    if steps <= FIRST_BOTH + move.guidance:
        return None
    guidance = GuidancePlan.every(move.guidance, steps, FIRST_BOTH)
    if guidance.steps == (first_step,):
        return None
    guidance = guidance.without(first_step)
    return CachePolicy.explicit({}, steps, guidance=guidance)
