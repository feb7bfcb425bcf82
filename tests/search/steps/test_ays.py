"""Coordinate descent on the sampled bound, on the exactly solvable model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from gaussian_model import ancestral_distance, exact_gram, sigma_at

from osp_opt.base.errors import ScheduleError
from osp_opt.calibration import step_changes
from osp_opt.sampling.schedule import TimestepSchedule, timestep_of
from osp_opt.search.steps.ays import CoordinateDescent, Interval, KlubSampler, coarse_lengths
from osp_opt.search.steps.objectives import klub_cost
from osp_opt.search.steps.programme import plan_steps, spread_apart

MODES = np.logspace(-2, np.log10(4.0), 64)
C = 0.5


def exact_costs(steps: list[Interval]) -> list[float]:
    """KLUB of steps on the Gaussian model: int g dW - g(high) (W(high) - W(low))."""
    high, low = sigma_at(np.array([h for h, _ in steps])), sigma_at(np.array([s for _, s in steps]))
    place = (np.arange(24) + 0.5) / 24
    w_high, w_low = -1 / (high**2 + C**2), -1 / (low**2 + C**2)
    w = w_low[:, None] + place * (w_high - w_low)[:, None]
    power = -1.0 / w - C**2
    own = (MODES**2 / (MODES + power[..., None])).mean(-1)
    start = (MODES**2 / (MODES + high[:, None] ** 2)).mean(-1)
    return list((w_high - w_low) * (own - start[:, None]).mean(-1))


@pytest.mark.parametrize(("steps", "bound"), [(10, 0.0290), (20, 0.0100)])
def test_descent_on_the_exact_score_reaches_the_quality_of_dp(steps: int, bound: float) -> None:
    found, cost = CoordinateDescent(exact_costs).search(steps)
    assert len(found) == steps
    assert (found.timesteps[0], found.timesteps[-1]) == (999.0, 0.0)
    assert ancestral_distance(np.array(found.timesteps)) <= bound
    grid = np.linspace(999, 0, 300)
    changes = step_changes(exact_gram(sigma_at(grid), MODES))
    optimum = plan_steps(klub_cost(changes, sigma_at(grid), C), grid, steps).costs[steps]
    assert cost <= 1.05 * optimum


def test_random_candidates_also_descend() -> None:
    uniform = np.array(TimestepSchedule.uniform(10).timesteps)
    descent = CoordinateDescent(exact_costs, neighbour_type="random", seed=3)
    found, cost = descent.descend(uniform)
    assert cost < 0.6 * sum(exact_costs(list(itertools.pairwise(uniform))))
    again, _ = descent.descend(uniform)
    np.testing.assert_array_equal(found, again)


def test_descent_rests_only_when_no_timestep_moves() -> None:
    """The last sweep of each reach moved nothing: a descent from its result ends at once."""
    sweeps: list[tuple[int, int, float]] = []
    descent = CoordinateDescent(exact_costs, progress=lambda *of: sweeps.append(of))
    found, cost = descent.descend(np.array(TimestepSchedule.uniform(8).timesteps))
    assert len(sweeps) > 4
    costs = [of[2] for of in sweeps]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] == costs[-2]
    sweeps.clear()
    again, _ = CoordinateDescent(exact_costs, progress=lambda *of: sweeps.append(of)).descend(found)
    assert len(sweeps) <= 4
    assert sum(exact_costs(list(itertools.pairwise(again)))) == pytest.approx(cost, rel=0.01)


def test_minimum_gap_is_kept() -> None:
    found, _ = CoordinateDescent(exact_costs, min_gap=30.0).search(20)
    assert np.diff(found.timesteps).max() <= -30.0 + 1e-9


class GaussianPath:
    """The ideal denoiser on forward paths of Gaussian data, x_s = x0 + W(s^2)."""

    def __init__(self, videos: int, elements: int) -> None:
        rng = np.random.default_rng(0)
        self.variances = np.resize(MODES, elements)
        self.x0 = rng.standard_normal((videos, elements)) * np.sqrt(self.variances)
        self.levels = np.geomspace(0.01, 158.0, 4000)
        steps = np.sqrt(np.diff(self.levels**2, prepend=0.0))
        self.rng_seeds = list(range(videos))
        self.paths = np.cumsum(
            rng.standard_normal((videos, len(self.levels), elements)) * steps[:, None], axis=1
        )

    def __call__(self, video: int, sigma: float) -> np.ndarray:
        k = int(np.abs(self.levels - sigma).argmin())
        s = self.levels[k]
        return self.variances / (self.variances + s * s) * (self.x0[video] + self.paths[video, k])


def test_sampled_bound_is_unbiased() -> None:
    path = GaussianPath(videos=4, elements=64)
    step = (float(timestep_of(2.0)), float(timestep_of(0.5)))
    estimates = [KlubSampler(path, 4, 8, seed)(*step) for seed in range(40)]
    # The four videos are the same for all seeds: compare with their own table.
    grid = path.levels[(path.levels >= 0.5) & (path.levels <= 2.0)][::-1]
    exact = []
    for video in range(4):
        d = np.stack([path(video, s) for s in grid])
        exact.append(klub_cost(step_changes(d @ d.T / d.shape[1]), grid, C)[0, -1])
    error = np.std(estimates) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(np.mean(exact), abs=4 * error)
    assert error < 0.05 * np.mean(exact)


def test_start_predictions_are_remembered_and_evaluations_counted() -> None:
    sampler = KlubSampler(GaussianPath(2, 64), 2, 5, seed=0)
    first = sampler(500.0, 400.0)
    assert sampler.evaluations == 5 + 2
    assert sampler(500.0, 400.0) == first
    assert sampler.evaluations == 2 * 5 + 2


@pytest.mark.parametrize("steps", [2, 3, 9, 10, 11, 25, 50, 100])
def test_lengths_grow_by_inserting_between_neighbours(steps: int) -> None:
    lengths = coarse_lengths(steps)
    assert lengths[-1] == steps
    assert lengths[0] <= 10
    for coarse, fine in itertools.pairwise(lengths):
        assert fine in (2 * coarse - 1, 2 * coarse - 2)


def test_spreading_keeps_ends_order_and_gap() -> None:
    crowded = np.array([999.0, 998.9, 998.8, 500.0, 0.2, 0.1, 0.0])
    apart = spread_apart(crowded, 1.0)
    assert (apart[0], apart[-1]) == (999.0, 0.0)
    assert np.diff(apart).max() <= -1.0 + 1e-9
    np.testing.assert_allclose(apart[3], 500.0)
    with pytest.raises(ScheduleError, match="do not fit"):
        spread_apart(np.linspace(3, 0, 7), 1.0)
