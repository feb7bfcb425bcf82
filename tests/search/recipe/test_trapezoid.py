"""Steps that make up for the one before: against their definition, and by exact strong errors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from osp_opt.sampling.levels import MAX_CORRECTION
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of
from osp_opt.sampling.steps import correction_factors
from osp_opt.search.recipe.trapezoid import trapezoid_cost, trapezoid_weights
from osp_opt.search.steps.coherent import DATA_SCALE
from osp_opt.search.steps.programme import plan_steps
from tests.helpers.gaussian_model import coupled_error, exact_gram

LEVELS = np.array(TimestepSchedule.uniform(100).timesteps)
VARIANCES = np.array([0.01, 0.1, 0.5, 2.0])  # of a video's many modes


def test_the_cost_is_what_a_trapezoid_misses(rng: np.random.Generator) -> None:
    k = 9
    sigmas = np.geomspace(20.0, 0.05, k)
    walk = rng.normal(size=(k, 40)).cumsum(axis=0)
    changes = np.square(walk[:, None] - walk[None]).mean(axis=2)
    cost = trapezoid_cost(changes, sigmas)
    for i, j in itertools.product(range(k), repeat=2):
        if j <= i:
            assert cost[i, j] == np.inf
            continue
        own = walk[i] if j == k - 1 else (walk[i] + walk[j]) / 2
        u = np.diff(sigmas[i : j + 1] ** -2.0)[:, None]
        error = (u * (walk[i:j] - own)).sum(axis=0) * sigmas[j] ** 2
        want = np.square(error).mean() / (sigmas[j] ** 2 + DATA_SCALE**2) ** 2
        assert cost[i, j] == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_what_a_step_adds_is_half_the_change_before_it() -> None:
    """By a run of two steps whose prediction repeats errors as the feedback says."""
    sigmas = np.array([9.0, 4.0, 1.5, 0.4])
    first, second = 0.7, -0.2  # D at the first two levels, were there no errors
    factor = correction_factors([*sigmas.tolist(), 0.0], trapezoid_weights(sigmas))[1]
    taken = 1.0 - (sigmas[1:] / sigmas[:-1]) ** 2
    missed = taken[0] * (second - first) / 2  # in x at the second level
    k = DATA_SCALE**2 / (DATA_SCALE**2 + sigmas[1] ** 2)
    later = missed * (1 - taken[1] + taken[1] * k)  # in x at the third
    assert taken[1] * factor * (second - first) == pytest.approx(later)


@pytest.mark.parametrize("levels", [1, 2, 3, 30])
def test_weights_fit_a_schedule(levels: int) -> None:
    weights = trapezoid_weights(np.geomspace(100.0, 0.03, levels))
    TimestepSchedule(TimestepSchedule.uniform(levels).timesteps, corrections=weights)
    assert weights[0] == weights[-1] == 0.0
    assert all(weight > 0.0 for weight in weights[1:-1])


def test_a_much_longer_step_is_made_up_for_within_the_bound() -> None:
    assert max(trapezoid_weights(np.array([90.0, 50.0, 5.0, 4.8, 1.0, 0.1]))) == MAX_CORRECTION


def test_it_is_nearer_to_the_converged_video_than_constant_weights() -> None:
    """Exact mean square on one noise path, of even steps and of those that the cost plans."""
    changes = changes_of(sigma_of(LEVELS), VARIANCES)
    plan = plan_steps(trapezoid_cost(changes, sigma_of(LEVELS)), LEVELS, 60)
    for n in (12, 25, 50):
        even = np.array(TimestepSchedule.uniform(n).timesteps)
        planned = LEVELS[list(plan.path(n))]
        for timesteps in (even, planned):
            own = error_of(timesteps, trapezoid_weights(sigma_of(timesteps)))
            assert own < 0.95 * min(error_of(timesteps, weight) for weight in (0.0, 0.5, 1.0))
        assert own < error_of(even, trapezoid_weights(sigma_of(even))) / 3


def changes_of(sigmas: np.ndarray, variances: np.ndarray) -> np.ndarray:
    gram = exact_gram(sigmas, variances)
    own = np.diagonal(gram)
    changes: np.ndarray = own[:, None] + own[None] - 2 * gram
    return changes


def error_of(timesteps: np.ndarray, corrections: float | tuple[float, ...]) -> float:
    fine = np.array(TimestepSchedule.uniform(1000).timesteps)
    return coupled_error(timesteps, fine, VARIANCES, corrections)
