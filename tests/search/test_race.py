"""The race of schedules, on errors that are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from osp_opt.base.errors import OptionError
from osp_opt.search.race import Pair, affordable, affordable_prompts, race


def noisy(
    truth: list[float], spread: float, seed: int = 0
) -> tuple[list[Pair], Callable[[list[Pair]], list[float]]]:
    """Log-normal errors whose prompt part is shared by all candidates."""
    rng = np.random.default_rng(seed)
    prompts, own = rng.standard_normal(50), rng.standard_normal((len(truth), 50)) * spread
    seen: list[Pair] = []

    def measure(pairs: list[Pair]) -> list[float]:
        seen.extend(pairs)
        return [float(truth[c] * np.exp(prompts[p] + own[c, p])) for c, p in pairs]

    return seen, measure


def test_the_best_wins_however_unequal_the_prompts_are() -> None:
    truth = [1.0, 0.8, 0.4, 0.9, 1.3]
    _, measure = noisy(truth, spread=0.05)
    result = race([0.5] * 5, 20, 10.0, measure, baseline_cost=1.0, pinned=0)
    assert result.winner == 2
    interval = result.against(2, 0)
    assert interval.high < 0
    assert interval.estimate == pytest.approx(np.log(0.4), abs=0.15)


def test_budget_is_kept_and_the_pinned_candidate_stays() -> None:
    truth = [2.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
    seen, measure = noisy(truth, spread=0.3)
    result = race([0.5] * 8, 50, 10.0, measure, baseline_cost=1.0, pinned=0)
    used = sorted({p for _, p in seen})
    assert len(seen) * 0.5 + len(used) <= 10.0 == pytest.approx(result.spent, abs=2.0)
    assert len(set(seen)) == len(seen)
    assert set(result.errors[0]) == set(result.errors[result.winner]) == set(used)


def test_pinned_best_is_still_challenged() -> None:
    _, measure = noisy([0.1, 1.0, 1.0, 0.9], spread=0.01)
    result = race([0.1] * 4, 5, 100.0, measure, baseline_cost=1.0, pinned=0)
    assert result.winner == 0
    assert len(result.ranking) == 2


def test_one_round_is_run_whatever_the_budget() -> None:
    seen, measure = noisy([1.0, 2.0], spread=0.0)
    assert race([1.0, 1.0], 3, 0.1, measure, baseline_cost=1.0, pinned=0).winner == 0
    assert seen == [(0, 0), (1, 0)]
    with pytest.raises(OptionError):
        race([], 3, 1.0, measure, baseline_cost=1.0, pinned=0)


@pytest.mark.parametrize("budget", [0.5, 5.0, 10.0, 40.0])
def test_prompts_foreseen_are_about_those_used(budget: float) -> None:
    _, measure = noisy([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], spread=0.02)
    result = race([0.5] * 6, 50, budget, measure, baseline_cost=1.0, pinned=0)
    used = len(result.errors[0])
    assert abs(affordable_prompts([0.5] * 6, 1.0, budget) - used) <= 1


def test_a_fluke_does_not_decide_against_the_prediction() -> None:
    """Candidate 2 is lucky once; candidate 1 is steadily better, as predicted."""
    table = {0: [1.0, 1.0, 1.0], 1: [0.5, 0.5, 0.5], 2: [1.0, 0.01, 1.3]}
    result = race(
        [0.5] * 3,
        3,
        20.0,
        lambda pairs: [table[c][p] for c, p in pairs],
        baseline_cost=1.0,
        pinned=0,
        prior=[0.0, -0.6, 0.3],
    )
    assert result.winner == 1


def test_a_ratio_is_told_as_it_was_measured() -> None:
    """Bounds serve the ranking alone: a video that tips over counts in full for what is claimed."""
    table = {0: [1.0, 1.0, 1.0], 1: [0.02, 0.05, 0.1]}
    measure = lambda pairs: [table[c][p] for c, p in pairs]  # noqa: E731
    result = race([0.5, 0.5], 3, 20.0, measure, baseline_cost=1.0, pinned=0)
    found = result.against(1, 0)
    assert np.exp(found.estimate) == pytest.approx((0.02 * 0.05 * 0.1) ** (1 / 3))
    assert found.low < found.estimate < found.high


def test_without_a_pinned_candidate_one_is_left() -> None:
    truth = [0.9, 0.0, 1.5, 0.7, 2.0, 1.1, 3.0, 2.5]
    seen, measure = noisy([float(np.exp(t)) for t in truth], spread=0.3)
    result = race([1 / 1.3] * 8, 8, 40.0, measure)
    assert result.ranking == (1,)
    assert len(seen) / 1.3 <= 40.0
    assert len(set(seen)) == len(seen), "nothing is measured twice"
    assert all(result.errors[c] for c in range(8))
    counts = [len(result.errors[c]) for c in range(8)]
    assert counts[1] == max(counts) > min(counts), "those left get more prompts"


def test_a_small_budget_leaves_out_the_worst_predicted() -> None:
    assert affordable([0.8] * 12, 10.0) == 4
    assert affordable([0.8] * 12, 0.1) == 1
    assert affordable([0.5, 0.8], 100.0) == 2
