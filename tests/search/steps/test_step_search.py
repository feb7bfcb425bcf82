"""Timestep search against an exactly solvable model and against brute force."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from gaussian_model import ancestral_distance, exact_gram, sigma_at

from osp_opt.base.errors import ScheduleError
from osp_opt.calibration import step_changes
from osp_opt.search.steps.objectives import klub_cost
from osp_opt.search.steps.programme import path_cost, plan_steps


@pytest.mark.parametrize(
    ("steps", "expected"), [(10, 0.0526), (20, 0.0181), (33, 0.0081), (50, 0.0041), (100, 0.0012)]
)
def test_model_reproduces_the_known_distances_of_uniform_schedules(
    steps: int, expected: float
) -> None:
    assert ancestral_distance(np.linspace(999, 0, steps)) == pytest.approx(expected, abs=6e-5)


@pytest.fixture(scope="module")
def grid() -> np.ndarray:
    return np.linspace(999, 0, 100)


@pytest.mark.parametrize(("steps", "bound"), [(10, 0.0262), (20, 0.0078), (33, 0.0036)])
def test_dp_schedules_are_near_optimal_on_the_gaussian_model(
    grid: np.ndarray, steps: int, bound: float
) -> None:
    cost = klub_cost(step_changes(exact_gram(sigma_at(grid))), sigma_at(grid), c=0.5)
    path = plan_steps(cost, grid, 50).path(steps)
    assert ancestral_distance(grid[list(path)]) <= bound


def test_dp_schedule_of_50_steps_nearly_reaches_100_uniform(grid: np.ndarray) -> None:
    cost = klub_cost(step_changes(exact_gram(sigma_at(grid))), sigma_at(grid), c=0.5)
    path = plan_steps(cost, grid, 50).path(50)
    assert (path[0], path[-1], len(path)) == (0, 99, 50)
    assert ancestral_distance(grid[list(path)]) <= 0.0017


def test_dp_equals_brute_force(rng: np.random.Generator) -> None:
    timesteps = np.linspace(999, 0, 9)
    cost = np.where(np.triu(np.ones((9, 9)), 1) > 0, rng.random((9, 9)), np.inf)
    plan = plan_steps(cost, timesteps, 9)
    for n in range(2, 10):
        paths = [(0, *inner, 8) for inner in combinations(range(1, 8), n - 2)]
        best = min(paths, key=lambda path: path_cost(cost, path))
        assert plan.path(n) == best
        assert plan.costs[n] == pytest.approx(path_cost(cost, best))


def test_minimum_gap_is_kept_and_limits_the_length(rng: np.random.Generator) -> None:
    timesteps = np.linspace(999, 0, 40)
    cost = np.where(np.triu(np.ones((40, 40)), 1) > 0, rng.random((40, 40)), np.inf)
    plan = plan_steps(cost, timesteps, 40, min_gap=100.0)
    assert np.diff(timesteps[list(plan.path(8))]).max() <= -100.0
    with pytest.raises(ScheduleError, match="no schedule of 12 steps"):
        plan.path(12)


def test_one_step_and_too_many_steps_are_refused() -> None:
    plan = plan_steps(
        np.triu(np.ones((5, 5)), 1) + np.tril(np.full((5, 5), np.inf)), np.linspace(999, 0, 5), 7
    )
    for steps in (-1, 0, 1, 6, 8):
        with pytest.raises(ScheduleError, match="possible: 2 to 5"):
            plan.path(steps)
