"""The race of schedules, on errors that are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from osp_opt.base.errors import ScheduleError
from osp_opt.search.race import Pair, affordable_prompts, race_schedules


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
    result = race_schedules([0.5] * 5, 1.0, 20, budget=10.0, measure=measure)
    assert result.winner == 2
    interval = result.against(2, 0)
    assert interval.high < 0
    assert interval.estimate == pytest.approx(np.log(0.4), abs=0.15)


def test_budget_is_kept_and_the_pinned_candidate_stays() -> None:
    truth = [2.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6]
    seen, measure = noisy(truth, spread=0.3)
    result = race_schedules([0.5] * 8, 1.0, 50, budget=10.0, measure=measure)
    used = sorted({p for _, p in seen})
    assert len(seen) * 0.5 + len(used) <= 10.0 == pytest.approx(result.spent, abs=2.0)
    assert len(set(seen)) == len(seen)
    assert set(result.errors[0]) == set(result.errors[result.winner]) == set(used)


def test_pinned_best_is_still_challenged() -> None:
    _, measure = noisy([0.1, 1.0, 1.0, 0.9], spread=0.01)
    result = race_schedules([0.1] * 4, 1.0, 5, budget=100.0, measure=measure)
    assert result.winner == 0
    assert len(result.ranking) == 2


def test_one_round_is_run_whatever_the_budget() -> None:
    seen, measure = noisy([1.0, 2.0], spread=0.0)
    assert race_schedules([1.0, 1.0], 1.0, 3, budget=0.1, measure=measure).winner == 0
    assert seen == [(0, 0), (1, 0)]
    with pytest.raises(ScheduleError):
        race_schedules([], 1.0, 3, budget=1.0, measure=measure)


@pytest.mark.parametrize("budget", [0.5, 5.0, 10.0, 40.0])
def test_prompts_foreseen_are_about_those_used(budget: float) -> None:
    _, measure = noisy([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], spread=0.02)
    result = race_schedules([0.5] * 6, 1.0, 50, budget, measure)
    used = len(result.errors[0])
    assert abs(affordable_prompts([0.5] * 6, 1.0, budget) - used) <= 1


def test_a_fluke_does_not_decide_against_the_prediction() -> None:
    """Candidate 2 is lucky once; candidate 1 is steadily better, as predicted."""
    table = {0: [1.0, 1.0, 1.0], 1: [0.5, 0.5, 0.5], 2: [1.0, 0.01, 1.3]}
    result = race_schedules(
        [0.5] * 3,
        1.0,
        3,
        20.0,
        lambda pairs: [table[c][p] for c, p in pairs],
        prior=[0.0, -0.6, 0.3],
    )
    assert result.winner == 1
