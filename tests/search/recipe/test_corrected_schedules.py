"""Costs of corrected schedules against their definitions, and the programme against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import spearmanr

from osp_opt.base.errors import ScheduleError
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of
from osp_opt.sampling.steps import correction_factors
from osp_opt.search.recipe.pairs import PairProgramme, corrected_cost
from osp_opt.search.steps.coherent import coherent_error, error_coefficients
from osp_opt.search.steps.objectives import deterministic_cost
from tests.helpers.gaussian_model import coupled_error, exact_gram

K, E = 9, 40


@pytest.fixture
def walk(rng: np.random.Generator) -> np.ndarray:
    """A random walk, as predictions on a noise path are."""
    return rng.normal(size=(K, E)).cumsum(axis=0)


def changes_of(rows: np.ndarray) -> np.ndarray:
    return np.square(rows[:, None] - rows[None]).mean(axis=2)


SIGMAS = np.geomspace(20.0, 0.05, K)


def test_the_cost_is_the_error_of_the_corrected_step(walk: np.ndarray) -> None:
    clock = 1.0 / SIGMAS
    cost = corrected_cost(changes_of(walk), SIGMAS, 0.6, power=0.3)
    for p, i, j in itertools.product(range(K), repeat=3):
        if not p <= i < j:
            assert cost[p, i, j] == np.inf
            continue
        held = walk[i]
        if p < i:
            f = 0.6 * np.log(SIGMAS[i] / SIGMAS[j]) / (2 * np.log(SIGMAS[p] / SIGMAS[i]))
            held = held + f * (walk[i] - walk[p])
        u = np.diff(clock[i : j + 1])[:, None]
        error = (u * (walk[i:j] - held)).sum(axis=0) / clock[j]
        want = np.square(error).mean() / (SIGMAS[j] ** 2 + 0.5) ** 0.3
        assert cost[p, i, j] == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_without_weight_it_is_the_plain_steps_cost(walk: np.ndarray) -> None:
    changes = changes_of(walk)
    cost = corrected_cost(changes, SIGMAS, 0.0, c=0.5, power=0.5)
    np.testing.assert_allclose(cost[0], deterministic_cost(changes, SIGMAS, 0.5, 0.5))


@pytest.mark.parametrize("steps", [2, 3, 5, 8, 9])
def test_the_programme_is_exact(walk: np.ndarray, steps: int) -> None:
    timesteps = np.linspace(999.0, 0.0, K)
    cost = corrected_cost(changes_of(walk), SIGMAS, 0.8)

    def total(path: tuple[int, ...]) -> float:
        befores = (0, *path)
        return sum(cost[p, i, j] for p, i, j in zip(befores, path, path[1:], strict=False))

    every = [(0, *inner, K - 1) for inner in itertools.combinations(range(1, K - 1), steps - 2)]
    programme = PairProgramme(cost, timesteps)
    programme.path(4)  # of several lengths, each is right, in any order
    assert programme.path(steps) == min(every, key=total)


def test_what_no_schedule_has(walk: np.ndarray) -> None:
    cost = corrected_cost(changes_of(walk), SIGMAS, 0.5)
    with pytest.raises(ScheduleError, match="no schedule of 10 steps"):
        PairProgramme(cost, np.linspace(999.0, 0.0, K)).path(10)
    with pytest.raises(ScheduleError, match="no schedule of 9 steps"):
        PairProgramme(cost, np.linspace(8.0, 0.0, K), min_gap=2.0).path(9)


def test_coefficients_are_those_of_the_sampler(rng: np.random.Generator) -> None:
    """Stepping through a schedule with a D that answers errors as the feedback says."""
    c, path, weights = 0.3, (0, 2, 3, 6, 8), (0.0, 0.5, 1.0, 0.25, 0.0)
    drift = rng.normal(size=K)  # what D is besides its answer to x

    factors = correction_factors([*SIGMAS[list(path)].tolist(), 0.0], weights)
    clock = SIGMAS**-2.0
    want = 0.0
    for step, i in enumerate(path[:-1]):
        j = path[step + 1]
        slope = c * c / (c * c + SIGMAS[i] ** 2)
        held = drift[i]
        if factors[step]:
            held = held + factors[step] * (held - drift[path[step - 1]])
        fine_mean = (np.diff(clock[i : j + 1]) * drift[i:j]).sum() / clock[j]
        own_mean = (clock[j] - clock[i]) * held / clock[j]
        kept = (SIGMAS[j] / SIGMAS[i]) ** 2
        want = want * (kept + (1 - kept) * slope) + fine_mean - own_mean
    want *= c * c / (c * c + SIGMAS[-1] ** 2)
    found = error_coefficients(SIGMAS, path, weights, c=c)
    assert found.sum() == pytest.approx(0.0, abs=1e-9)
    assert found @ drift == pytest.approx(want)
    changes = np.square(drift[:, None] - drift[None])
    assert coherent_error(changes, found) == pytest.approx(want**2)


def test_it_ranks_lengths_and_corrections_as_sampling_does() -> None:
    """On the Gaussian model, whose error on one noise path is known."""
    variances = np.array([0.09])
    levels = np.array(TimestepSchedule.uniform(100).timesteps)
    sigmas = sigma_of(levels)
    gram = exact_gram(sigmas, variances)
    own = np.diagonal(gram)
    changes = own[:, None] + own[None] - 2 * gram
    predicted, exact = [], []
    for every, weight in itertools.product((3, 9, 11), (0.0, 0.5, 1.0)):
        path = tuple(range(0, 100, every))
        corrections = TimestepSchedule(tuple(levels[list(path)])).corrected(weight).corrections
        found = error_coefficients(sigmas, path, corrections)
        predicted.append(float(coherent_error(changes, found)))
        exact.append(coupled_error(levels[list(path)], levels, variances, weight))
    assert spearmanr(predicted, exact).statistic > 0.95
