"""What is reused beside fewer steps: the cheapest steps, by brute force; predicted times."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.search.cache.block_times import BlockTimes
from osp_opt.search.cache.moves import (
    FIRST_BOTH,
    INTERVALS,
    MOVES,
    SPARED,
    Move,
    guided_plans,
    plan_reuse,
)
from osp_opt.search.cache.runs import run_ranges
from osp_opt.search.cache.scores import ReuseErrors, policy_score

STEPS, BLOCKS = 16, 4
TIMES = BlockTimes((1.0, 2.0, 2.0, 1.0), rest=1.0, add=0.1, alone=0.6)


@pytest.fixture
def errors(rng: np.random.Generator) -> ReuseErrors:
    """Of two videos, with nothing regular in them."""
    table = rng.lognormal(size=(2, STEPS, 7, BLOCKS + 1, BLOCKS + 1))
    return ReuseErrors(table)


@pytest.mark.parametrize(("guidance", "blocks"), [(2, 1.1), (3, 1.1), (3, 1.25), (4, 1.4)])
def test_no_other_steps_save_as_much_for_less(
    errors: ReuseErrors, rng: np.random.Generator, guidance: int, blocks: float
) -> None:
    """All sets of steps that run the positive branch alone, on one video."""
    one, weights = ReuseErrors(errors.table[:1]), rng.lognormal(size=STEPS)
    policy = plan_reuse(Move(guidance, blocks), one, weights, TIMES)
    assert policy is not None
    plan = GuidancePlan.every(guidance, STEPS, FIRST_BOTH)
    assert policy.guidance == plan
    alone = TIMES.seconds(CachePolicy.explicit({}, STEPS, guidance=plan), STEPS)
    seconds = TIMES.seconds(policy, STEPS)
    assert seconds <= alone / blocks

    chosen = [step for step, ranges in enumerate(policy.plan) if ranges]
    ((own,),) = {policy.plan[step] for step in chosen}
    assert own in run_ranges(BLOCKS)
    score = policy_score(policy, one, weights)
    possible = [step for step in plan.steps if step < STEPS - SPARED]
    assert set(chosen) <= set(possible)
    for each in itertools.combinations(possible, len(chosen)):
        reuse = {step: [own] for step in each}
        other = CachePolicy.explicit(reuse, STEPS, 1, plan)
        if TIMES.seconds(other, STEPS) <= seconds:
            assert policy_score(other, one, weights) >= score * (1 - 1e-9)


def test_seconds_of_a_policy_with_guidance() -> None:
    """By hand: 7 s a step; at 4 of 10 the positive branch alone, once with blocks reused."""
    plan = GuidancePlan((3, 5, 7, 9), 1)
    policy = CachePolicy.explicit({5: [(1, 3)]}, 10, 0, plan)
    alone = 0.6 * 7.0
    stored = 0.1  # at step 4
    want = 6 * 7.0 + stored + 3 * alone + 0.6 * (7.0 - 4.0 + 0.1)
    assert TIMES.seconds(policy, 10) == pytest.approx(want)


@pytest.mark.parametrize("move", MOVES, ids=str)
def test_every_move_can_be_run_or_is_none(errors: ReuseErrors, move: Move) -> None:
    weights = np.ones(STEPS)
    policy = plan_reuse(move, errors, weights, TIMES)
    if policy is None:
        assert move.blocks > 1.0, "only too few steps to spare stop a move"
        return
    policy.validate(BLOCKS, STEPS)
    assert (policy.guidance is not None) == (move.guidance > 1)
    assert any(policy.plan) == (move.blocks > 1.0)
    assert not any(policy.plan[-SPARED:]) or move.guidance == 1
    assert plan_reuse(Move(3), ReuseErrors(errors.table[:, :5]), weights[:5], TIMES) is None


def test_guided_plans_reach_the_ratio_or_are_left_out(errors: ReuseErrors) -> None:
    weights = np.ones(STEPS)
    for ratio in (1.2, 1.5):
        plans = guided_plans(errors, weights, TIMES, ratio)
        assert plans
        assert len(plans) <= len(INTERVALS)
        for plan in plans:
            assert plan.guidance is not None
            assert TIMES.speedup(plan, STEPS) >= ratio - 1e-9
    # A step at least runs both branches, and one of theirs alone costs what no reuse takes away.
    assert guided_plans(errors, weights, TIMES, 50.0) == []
