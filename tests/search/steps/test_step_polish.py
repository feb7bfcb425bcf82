"""Polishing on the exactly solvable model, whose coupled error is known without sampling."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from gaussian_model import coupled_error, exact_gram, sigma_at

from osp_opt.calibration import step_changes
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.objectives import klub_cost
from osp_opt.search.steps.polish import KNOTS, polish_schedule, warped
from osp_opt.search.steps.programme import plan_steps

FULL = np.linspace(999, 0, 100)
PROMPTS = tuple(np.logspace(-2, top, 40) for top in (0.4, 0.6, 0.8))
FRESH = np.logspace(-2, 0.7, 40)


@pytest.fixture(scope="module")
def start() -> TimestepSchedule:
    """What KLUB finds: good for the distribution, not for staying close to one video."""
    sigmas = sigma_at(FULL)
    cost = klub_cost(step_changes(exact_gram(sigmas)), sigmas)
    return TimestepSchedule(tuple(FULL[list(plan_steps(cost, FULL, 12).path(12))]))


class Measured:
    """Exact errors, and which schedules were asked for."""

    def __init__(self) -> None:
        self.asked: list[TimestepSchedule] = []

    def __call__(self, schedules: Sequence[TimestepSchedule]) -> list[list[float]]:
        self.asked.extend(schedules)
        return [
            [coupled_error(np.array(s.timesteps), FULL, variances) for variances in PROMPTS]
            for s in schedules
        ]


def test_polishing_lowers_the_error_on_other_prompts_too(start: TimestepSchedule) -> None:
    measure = Measured()
    found = polish_schedule(start, measure, limit=120)
    assert np.mean(found.log_ratios) < np.log(0.8)
    before, after = (
        coupled_error(np.array(s.timesteps), FULL, FRESH) for s in (start, found.schedule)
    )
    assert after < 0.85 * before
    ends = found.schedule.timesteps[0], found.schedule.timesteps[-1]
    assert ends == (start.timesteps[0], start.timesteps[-1])
    polished, own = Measured()([found.schedule, start])
    np.testing.assert_allclose(found.log_ratios, np.log(np.array(polished) / np.array(own)))


def test_what_only_helps_the_prompts_it_was_polished_on_is_not_kept(
    start: TimestepSchedule,
) -> None:
    """Judged by prompts on which errors move the other way, then by those it was polished on."""
    measure = Measured()
    polished = polish_schedule(start, measure, limit=20).schedule

    def opposite(schedules: Sequence[TimestepSchedule]) -> list[list[float]]:
        return [[1.0 / error for error in errors] for errors in measure(schedules)]

    refused = polish_schedule(start, measure, 20, opposite)
    assert refused.schedule == start
    assert np.mean(refused.others) > 0 > np.mean(refused.log_ratios)
    confirmed = polish_schedule(start, measure, 20, measure)
    assert confirmed.schedule == polished != start
    assert confirmed.others == confirmed.log_ratios


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_the_limit_is_kept_and_the_same_questions_are_asked_again(
    start: TimestepSchedule, limit: int
) -> None:
    """Nothing depends on chance, so a ledger of the answers resumes it."""
    first, second = Measured(), Measured()
    found = polish_schedule(start, first, limit)
    assert found.tried <= limit
    assert len(first.asked) == found.tried + 1
    assert polish_schedule(start, second, limit) == found
    assert second.asked == first.asked
    if limit < 2:
        assert found.schedule == start


@pytest.mark.parametrize("whole", [False, True])
def test_warps_keep_order_gap_and_ends(start: TimestepSchedule, whole: bool) -> None:
    for knot in range(1, KNOTS + 1):
        for shift in (-0.08, 0.08):
            found = warped(start, knot, shift, whole)
            assert found is not None
            assert (found.timesteps[0], found.timesteps[-1]) == (999.0, 0.0)
            assert np.diff(found.timesteps).max() <= -1.0 + 1e-9
            assert not whole or all(t == round(t) for t in found.timesteps)
    crowded = TimestepSchedule(tuple(float(t) for t in range(20, -1, -1)))
    assert warped(crowded, 2, 0.05, whole=True) in (None, crowded)
