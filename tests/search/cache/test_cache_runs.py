"""Runs of reuse: the programme against brute force, forecasts against vectors, the probes."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from osp_opt.search.cache.block_times import BlockTimes
from osp_opt.search.cache.probes import importance_probes, measured_importance
from osp_opt.search.cache.runs import MAX_GAP, best_runs, run_ranges
from osp_opt.search.cache.scores import ReuseErrors, policy_score

STEPS, BLOCKS, LAGS = 9, 3, 7
TIMES = BlockTimes((1.0, 1.0, 1.0), 0.5, 0.01)


def vectors(rng: np.random.Generator, smooth: float) -> np.ndarray:
    """What the blocks add at every step, [S, D]: a drift and a random walk."""
    t = np.arange(STEPS)[:, None]
    drift = smooth * np.sin(0.3 * t + rng.normal(size=(1, 20)))
    return drift + rng.normal(size=(STEPS, 20)).cumsum(axis=0)


def errors_of(d: np.ndarray) -> ReuseErrors:
    """Their table; every range changes alike."""
    table = np.zeros((1, STEPS, LAGS, BLOCKS + 1, BLOCKS + 1))
    for step in range(STEPS):
        for lag in range(1, min(LAGS, step) + 1):
            table[0, step, lag - 1] = np.sum((d[step] - d[step - lag]) ** 2)
    return ReuseErrors(table)


def test_a_forecasts_error_follows_from_those_of_reuse(rng: np.random.Generator) -> None:
    d = vectors(rng, 3.0)
    errors = errors_of(d)
    for lag, spacing in ((1, 1), (2, 1), (1, 3), (3, 2)):
        for step in range(lag + spacing, STEPS):
            last, older = d[step - lag], d[step - lag - spacing]
            forecast = last + lag / spacing * (last - older)
            expected = max(np.sum((d[step] - forecast) ** 2), 0.01 * np.sum((d[step] - last) ** 2))
            found = errors.of_reuse(step, lag, (0, BLOCKS), spacing)
            assert found == pytest.approx([expected], rel=1e-9)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("ratio", [1.2, 1.5, 2.0])
def test_no_other_plan_of_runs_saves_as_much_for_less(
    rng: np.random.Generator, order: int, ratio: float
) -> None:
    errors = errors_of(vectors(rng, 2.0))
    importance = rng.uniform(0.5, 2.0, STEPS)
    blocks = (0, BLOCKS)
    plan = best_runs(errors, importance, TIMES, ratio, blocks, order)
    assert plan is not None
    assert plan.order == order
    assert TIMES.speedup(plan, STEPS) >= ratio
    saved = plan.reused_blocks(STEPS)
    score = policy_score(plan, errors, importance)
    others = 0
    for count in range(STEPS):
        for reused in combinations(range(1, STEPS), count):
            computed = [step for step in range(STEPS) if step not in reused]
            longest = max(b - a for a, b in pairwise([*computed, STEPS]))
            other = type(plan).explicit({step: [blocks] for step in reused}, STEPS, order)
            if longest > MAX_GAP or other.reused_blocks(STEPS) < saved:
                continue
            others += 1
            assert policy_score(other, errors, importance) >= score * (1 - 1e-9)
    assert others > 5


def test_an_impossible_ratio_finds_nothing(rng: np.random.Generator) -> None:
    errors = errors_of(vectors(rng, 1.0))
    assert best_runs(errors, np.ones(STEPS), TIMES, 50.0, (0, BLOCKS), 1) is None


def test_ranges_lie_inside_the_model() -> None:
    for num_blocks in (1, 2, 3, 4, 12, 32):
        found = run_ranges(num_blocks)
        assert (0, num_blocks) in found
        assert len(found) == len(set(found))
        assert all(0 <= a < b <= num_blocks for a, b in found)


@pytest.mark.parametrize("steps", [2, 5, 9, 30, 100])
def test_probes_recover_the_weights_they_were_made_with(
    rng: np.random.Generator, steps: int
) -> None:
    table = rng.uniform(0.1, 1.0, (3, steps, 1, BLOCKS + 1, BLOCKS + 1))
    errors = ReuseErrors(table)
    probes = importance_probes(errors)
    assert all(probe.policy.reused_blocks(steps) == BLOCKS * len(probe.steps) for probe in probes)
    weights = {probe: rng.uniform(0.1, 10.0) for probe in probes}
    recorded = np.exp(np.log(table[:, :, 0, 0, -1]).mean(axis=0))
    measured = [weight * recorded[list(probe.steps)].sum() for probe, weight in weights.items()]
    found = measured_importance(errors, probes, measured)
    assert found.shape == (steps,)
    for probe, weight in weights.items():
        if probe.centre == int(probe.centre):
            assert found[int(probe.centre)] == pytest.approx(weight)
