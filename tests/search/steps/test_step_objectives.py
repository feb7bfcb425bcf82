"""The cost tables against their definitions, written out with explicit loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gaussian_model import (
    ancestral_distance,
    coupled_error,
    deterministic_distance,
    exact_gram,
    multistep_distance,
    multistep_result,
    sigma_at,
)
from scipy.integrate import trapezoid
from torch import Tensor

from osp_opt.base.errors import CalibrationError
from osp_opt.calibration import step_changes
from osp_opt.sampling.noise import make_noise
from osp_opt.sampling.samplers import sample_with_scheduler
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import make_scheduler, set_schedule
from osp_opt.search.steps.objectives import (
    StepObjective,
    deterministic_cost,
    klub_cost,
    pathwise_cost,
    refine_changes,
)
from osp_opt.search.steps.programme import plan_steps

K = 12


@pytest.fixture
def denoised(rng: np.random.Generator) -> np.ndarray:
    """[K, elements] predictions that wander less and less, as real ones do."""
    steps = rng.standard_normal((K, 50)) * np.geomspace(1.0, 1e-3, K)[:, None]
    return np.cumsum(steps, axis=0)


@pytest.fixture
def sigmas() -> np.ndarray:
    return sigma_at(np.linspace(999, 0, K))


def changes_of(denoised: np.ndarray) -> np.ndarray:
    return step_changes(denoised @ denoised.T / denoised.shape[1])


def test_step_changes_are_mean_squared_differences(denoised: np.ndarray) -> None:
    direct = np.mean((denoised[:, None] - denoised[None]) ** 2, axis=-1)
    np.testing.assert_allclose(changes_of(denoised), direct, atol=1e-12)


def test_klub_is_the_weighted_integral_over_the_step(
    denoised: np.ndarray, sigmas: np.ndarray
) -> None:
    changes, c = changes_of(denoised), 0.5
    cost = klub_cost(changes, sigmas, c)
    weight = -1.0 / (sigmas**2 + c**2)
    for i in range(K):
        for j in range(K):
            if j <= i:
                assert cost[i, j] == np.inf
                continue
            total = 0.0
            for k in range(i, j):
                mean = 0.5 * (changes[k, i] + changes[k + 1, i])
                total += mean * (weight[k] - weight[k + 1])
            assert cost[i, j] == pytest.approx(total, rel=1e-9)


def test_klub_without_early_stopping_is_the_papers_integral() -> None:
    """With c = 0 the weight's increment is 2 s^-3 ds: compare with a fine quadrature."""
    fine = np.geomspace(5.0, 0.2, 801)
    coarse_at = np.arange(0, 801, 80)
    cost = klub_cost(step_changes(exact_gram(fine)), fine, c=0.0)
    i, j = coarse_at[2], coarse_at[7]
    change = step_changes(exact_gram(fine[i : j + 1]))[0]
    integral = -trapezoid(2.0 * fine[i : j + 1] ** -3 * change, fine[i : j + 1])
    assert cost[i, j] == pytest.approx(integral, rel=1e-3)


def test_pathwise_is_the_exact_error_of_ancestral_steps(
    denoised: np.ndarray, sigmas: np.ndarray
) -> None:
    """One coarse step against the fine steps it replaces, without noise, from the same state."""
    cost = pathwise_cost(changes_of(denoised), sigmas, c=0.5, p=0.5)
    for i in range(K):
        for j in range(i + 1, K):
            x = np.zeros(denoised.shape[1])
            for k in range(i, j):
                ratio = (sigmas[k + 1] / sigmas[k]) ** 2
                x = denoised[k] + ratio * (x - denoised[k])
            coarse = (1.0 - (sigmas[j] / sigmas[i]) ** 2) * denoised[i]
            error = np.mean((x - coarse) ** 2) / (sigmas[j] ** 2 + 0.5) ** 0.5
            assert cost[i, j] == pytest.approx(error, rel=1e-6, abs=1e-13)


def test_deterministic_is_the_exact_error_of_euler_steps(
    denoised: np.ndarray, sigmas: np.ndarray
) -> None:
    cost = deterministic_cost(changes_of(denoised), sigmas, c=0.5, p=1.0)
    for i in range(K):
        for j in range(i + 1, K):
            x = np.zeros(denoised.shape[1])
            for k in range(i, j):
                slope = (x - denoised[k]) / sigmas[k]
                x = x + (sigmas[k + 1] - sigmas[k]) * slope
            coarse = (sigmas[j] - sigmas[i]) * (0.0 - denoised[i]) / sigmas[i]
            error = np.mean((x - coarse) ** 2) / (sigmas[j] ** 2 + 0.5)
            assert cost[i, j] == pytest.approx(error, rel=1e-6, abs=1e-13)


@pytest.mark.parametrize("levels", [100, 200])
def test_refined_table_is_close_to_the_exact_one(levels: int) -> None:
    coarse = sigma_at(np.linspace(999, 0, 100))
    fine = sigma_at(np.linspace(999, 0, levels) if levels != 100 else np.linspace(999, 0, 73))
    refined = refine_changes(step_changes(exact_gram(coarse)), coarse, fine)
    exact = step_changes(exact_gram(fine))
    np.testing.assert_array_equal(refined, refined.T)
    np.testing.assert_array_equal(np.diagonal(refined), 0.0)
    np.testing.assert_allclose(refined, exact, rtol=0.05, atol=0.01 * exact.max())


def test_refinement_at_the_recorded_levels_changes_nothing(
    denoised: np.ndarray, sigmas: np.ndarray
) -> None:
    changes = changes_of(denoised)
    np.testing.assert_allclose(refine_changes(changes, sigmas, sigmas), changes, atol=1e-12)
    stacked = np.stack([changes, 2 * changes])
    np.testing.assert_allclose(refine_changes(stacked, sigmas, sigmas), stacked, atol=1e-12)


def test_refinement_outside_the_recorded_range_is_refused(
    denoised: np.ndarray, sigmas: np.ndarray
) -> None:
    with pytest.raises(CalibrationError, match="outside the recorded"):
        refine_changes(changes_of(denoised), sigmas[2:-2], sigmas)


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_every_ancestral_objective_beats_uniform_on_the_gaussian_model(steps: int) -> None:
    grid = np.linspace(999, 0, 100)
    sigmas = sigma_at(grid)
    changes = step_changes(exact_gram(sigmas))
    uniform = ancestral_distance(np.linspace(999, 0, steps))
    for objective in (StepObjective("klub", 0.5), StepObjective("pathwise", 0.5, 0.5)):
        path = plan_steps(objective(changes, sigmas), grid, steps).path(steps)
        assert ancestral_distance(grid[list(path)]) < uniform


@pytest.mark.parametrize(("steps", "share"), [(10, 0.4), (20, 0.25), (33, 0.15), (50, 0.05)])
def test_pathwise_schedules_stay_close_to_the_full_length_on_one_noise_path(
    steps: int, share: float
) -> None:
    """What this objective is for: a fraction of uniform's error, and less than KLUB's."""
    grid = np.linspace(999, 0, 100)
    sigmas = sigma_at(grid)
    changes = step_changes(exact_gram(sigmas))

    def error(objective: StepObjective) -> float:
        path = plan_steps(objective(changes, sigmas), grid, steps).path(steps)
        return coupled_error(grid[list(path)], grid)

    found = error(StepObjective("pathwise", 0.5, 1.0))
    assert found < share * coupled_error(np.linspace(999, 0, steps), grid)
    assert found < error(StepObjective("klub", 0.5))


@pytest.mark.parametrize("steps", [5, 10, 20, 33, 50])
def test_deterministic_samplers_need_their_own_objective(steps: int) -> None:
    """From the table that calibrate records: better than uniform, where KLUB often is not."""
    grid = np.linspace(999, 0, 100)
    sigmas = sigma_at(grid)
    changes = step_changes(exact_gram(sigmas))

    def searched(objective: StepObjective) -> np.ndarray:
        return grid[list(plan_steps(objective(changes, sigmas), grid, steps).path(steps))]

    matching, klub = (
        searched(StepObjective("deterministic", 0.5, 0.0)),
        searched(StepObjective("klub", 0.5)),
    )
    uniform = np.linspace(999, 0, steps)
    for distance, share in ((deterministic_distance, 0.95), (multistep_distance, 0.8)):
        assert distance(matching) < 0.85 * distance(uniform)
        assert distance(matching) < share * distance(klub)


def test_multistep_formula_is_what_the_real_sampler_does() -> None:
    variances = np.logspace(-2, np.log10(4.0), 16)
    timesteps = (999.0, 870.0, 640.0, 410.0, 250.0, 120.0, 40.0, 0.0)
    scheduler = make_scheduler("DPMSolverMultistep")
    set_schedule(scheduler, TimestepSchedule(timesteps))
    v = torch.from_numpy(variances)[None]

    def predict_noise(x: Tensor, *, timestep: float, step: int) -> Tensor:
        """eps of the ideal denoiser: for x / sqrt(1 + s^2) it is s sqrt(1 + s^2) x / (v + s^2)."""
        s = float(sigma_at(np.array(timestep)))
        return s * np.sqrt(1 + s * s) / (v + s * s) * x

    start = sigma_at(np.array(timesteps[0]))
    unit = torch.full((1, 16), start / np.sqrt(1 + start**2), dtype=torch.float64)
    noise = make_noise("independent", [0], [""], (16,))
    found = sample_with_scheduler(scheduler, predict_noise, unit, noise)
    np.testing.assert_allclose(
        found[0], multistep_result(np.array(timesteps), variances), rtol=1e-3
    )


@pytest.mark.parametrize(("steps", "bound"), [(10, 0.0262), (20, 0.0078), (50, 0.0017)])
def test_schedules_from_a_refined_grid_are_as_good(steps: int, bound: float) -> None:
    recorded, grid = np.linspace(999, 0, 100), np.linspace(999, 0, 400)
    table = step_changes(exact_gram(sigma_at(recorded)))
    refined = refine_changes(table, sigma_at(recorded), sigma_at(grid))
    path = plan_steps(klub_cost(refined, sigma_at(grid)), grid, steps).path(steps)
    assert ancestral_distance(grid[list(path)]) <= bound
