"""Candidates against brute force, block times against a scripted clock, the race against truth."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.search.cache.block_times import BlockTimer, BlockTimes
from osp_opt.search.cache.candidates import (
    Candidate,
    four_field_candidates,
    largest_ratio,
)
from osp_opt.search.cache.check import check_predictor
from osp_opt.search.cache.plans import best_plan, free_candidates
from osp_opt.search.cache.scores import ReuseErrors, four_field_scores, policy_score

TIMES = BlockTimes(blocks=(1.0, 3.0, 2.0, 1.0), rest=1.5, add=0.05)
STEPS, BLOCKS = 8, 4


def some_errors(steps: int = STEPS, blocks: int = BLOCKS, lags: int = 7) -> ReuseErrors:
    rng = np.random.default_rng(1)
    walk = rng.normal(size=(3, steps, lags, blocks + 1, 5)).cumsum(axis=3)
    table = np.square(walk[..., :, None, :] - walk[..., None, :, :]).sum(-1)
    return ReuseErrors(table.astype(np.float32))


def all_policies() -> list[CachePolicy]:
    return [
        CachePolicy.four_field(start, count, step_start, interval)
        for start in range(BLOCKS)
        for count in range(1, BLOCKS - start + 1)
        for step_start in range(STEPS - 1)
        for interval in range(2, STEPS + 1)
    ]


def seconds_by_hand(policy: CachePolicy, steps: int) -> float:
    total = 0.0
    for step in range(steps):
        skipped = {b for r in policy.reuse_ranges(step) for b in range(*r)}
        total += TIMES.rest + sum(t for b, t in enumerate(TIMES.blocks) if b not in skipped)
        total += TIMES.add * (len(policy.reuse_ranges(step)) + len(policy.store_ranges(step)))
    return total


def test_predicted_time_of_every_policy() -> None:
    assert TIMES.step == 8.5
    for policy in all_policies():
        assert TIMES.seconds(policy, STEPS) == pytest.approx(seconds_by_hand(policy, STEPS))


@pytest.mark.parametrize("ratio", [1.05, 1.3, 2.0])
def test_candidates_are_the_best_scored_policies_that_reach_the_ratio(ratio: float) -> None:
    errors, importance = some_errors(), np.linspace(1.0, 0.2, STEPS)
    scores = four_field_scores(errors, importance, range(2, STEPS + 1))
    found = four_field_candidates(scores, TIMES, STEPS, ratio, limit=6)
    fast = [p for p in all_policies() if STEPS * TIMES.step / seconds_by_hand(p, STEPS) >= ratio]
    best = min(fast, key=lambda p: policy_score(p, errors, importance))
    assert found[0].score == pytest.approx(policy_score(best, errors, importance), rel=1e-4)
    assert [c.score for c in found] == sorted(c.score for c in found)
    for candidate in found:
        assert candidate.speedup >= ratio
        assert candidate.speedup == pytest.approx(TIMES.speedup(candidate.policy, STEPS))
        assert candidate.score == pytest.approx(
            policy_score(candidate.policy, errors, importance), rel=1e-4
        )


def test_the_score_is_judged_beside_the_number_of_skipped_blocks() -> None:
    """Errors made to follow the score exactly, and the number of skipped blocks in reverse."""
    few, many = CachePolicy.four_field(0, 1, 2, 2), CachePolicy.four_field(0, 3, 2, 2)
    finalists = [Candidate(many, 1.0, 1.3), Candidate(few, 2.0, 1.3), Candidate(few, 3.0, 1.3)]
    raced = {0: {0: 0.1, 1: 0.2}, 1: {0: 0.4}, 2: {0: 0.9, 1: 0.1}}
    found = check_predictor(finalists, raced, STEPS)
    assert (found.finalists, found.prompts) == (3, 1)
    assert found.score == pytest.approx(1.0)
    assert found.skipped < -0.8
    assert "score 1.00, skipped blocks -0.87" in found.line()
    alone = check_predictor(finalists[:1], {0: {0: 0.1}}, STEPS)
    assert alone.as_json()["score"] is None
    assert "too few" in alone.line()


def test_an_impossible_ratio_is_refused_with_the_largest_possible_one() -> None:
    largest, policy = largest_ratio(TIMES, STEPS)
    assert largest == pytest.approx(max(TIMES.speedup(p, STEPS) for p in all_policies()))
    assert TIMES.speedup(policy, STEPS) == pytest.approx(largest)
    scores = four_field_scores(some_errors(), np.ones(STEPS), range(2, STEPS + 1))
    with pytest.raises(PolicyError, match=f"largest possible ratio is {largest - 0.005:.2f}"):
        four_field_candidates(scores, TIMES, STEPS, largest + 0.01, limit=4)


def test_no_plan_is_both_cheaper_and_faster_than_the_best_plan() -> None:
    """All plans of one step with one range each, on a model of 3 blocks and 5 steps."""
    steps, times = 5, BlockTimes((1.0, 2.0, 1.5), 0.5, 0.01)
    errors = some_errors(steps, 3, lags=4)
    cost = errors.table[0].astype(np.float64)
    choices = [None, *((a, b) for a in range(3) for b in range(a + 1, 4))]

    def cost_and_saving(plan: tuple[tuple[int, int] | None, ...]) -> tuple[float, float]:
        total, saved, age = 0.0, 0.0, 1
        for step, blocks in enumerate(plan, start=1):
            if blocks is None:
                age = 1
                continue
            total += cost[step, age - 1, blocks[0], blocks[1]]
            saved += sum(times.blocks[blocks[0] : blocks[1]]) - times.add
            age += 1
        return total, saved

    every = [cost_and_saving(plan) for plan in product(choices, repeat=steps - 1)]
    for ratio in (1.1, 1.4, 1.8):
        found = best_plan(cost, times, ratio, single_range=True)
        assert found is not None
        assert times.speedup(found, steps) >= ratio
        assert all(len(ranges) <= 1 for ranges in found.plan)
        own = cost_and_saving(tuple(r[0] if r else None for r in found.plan[1:]))
        assert own[0] <= min(c for c, s in every if s >= own[1] - 1e-9) + 1e-6
        several = best_plan(cost, times, ratio)
        assert several is not None
        assert times.speedup(several, steps) >= ratio
    assert best_plan(cost, times, 50.0) is None


def test_free_candidates_reach_the_ratio_and_include_a_forecast() -> None:
    found = free_candidates(some_errors(), np.ones(STEPS), TIMES, 1.5, limit=8)
    assert all(c.speedup >= 1.5 for c in found)
    assert {c.policy.order for c in found} == {0, 1}
    assert free_candidates(some_errors(), np.ones(STEPS), TIMES, 40.0, limit=8) == []


def test_block_timer_reads_the_clock_of_each_block_and_of_what_lies_between() -> None:
    """A scripted clock: block i takes i + 1 seconds, the rest of a step 3; the first is slow."""
    now = [0.0]

    def block(i: int, step: int):  # type: ignore[no-untyped-def]
        def run(x: float) -> float:
            now[0] += (i + 1) * (50 if step == 0 else 1)
            return x + 1

        return run

    timer = BlockTimer(lambda: None, lambda: now[0])
    for step in range(8):
        for branch in ("negative", "positive"):
            assert timer.at(step, branch)([block(i, step) for i in range(3)], 0.0) == 3.0
        now[0] += 3.0
    times = timer.result()
    assert times.blocks == pytest.approx((2.0, 4.0, 6.0))  # both branches
    assert times.rest == pytest.approx(3.0)
    timer.reset()
    with pytest.raises(PolicyError, match="at least 5"):
        timer.result()
