"""Schedules for flow matching: the deterministic cost in its own clock, and a run's noisy end."""

from __future__ import annotations

import itertools
import pickle
from functools import partial

import numpy as np
import pytest
from scipy.stats import spearmanr

from osp_opt.base.errors import ScheduleError
from osp_opt.base.samplers import SamplerKind
from osp_opt.calibration import Calibration
from osp_opt.sampling.noise_scale import FLOW, MAX_SIGMA, NoiseScale
from osp_opt.sampling.schedule import TimestepSchedule, own_scale, sigma_of
from osp_opt.sampling.steps import correction_factors, two_step
from osp_opt.search.recipe.schedules import CorrectedSchedules
from osp_opt.search.steps.candidates import StepTable, objectives_for
from osp_opt.search.steps.objectives import StepObjective

EULER = SamplerKind("float")
EXACT = StepObjective("deterministic", 0.5, 0.0)


def even(steps: int) -> TimestepSchedule:
    """What FlowMatchEuler makes without a shift."""
    s = np.linspace(1.0, 1.0 / steps, steps)
    return TimestepSchedule(tuple(1000.0 * s), is_default=True, scale=FLOW)


def calibration(denoised_KE: np.ndarray, schedule: TimestepSchedule) -> Calibration:
    k = len(schedule)
    blocks = np.zeros((1, k, 1, 2, 2), dtype=np.float32)
    return Calibration(
        timesteps=np.array(schedule.timesteps),
        sigmas=schedule.sigmas[:-1],
        step_gram=(denoised_KE @ denoised_KE.T / denoised_KE.shape[1])[None],
        block_gram=blocks,
        guided_block_gram=blocks,
        lags=(1,),
        prompts=("",),
        seeds=(0,),
        metadata={"levels": schedule.scale.as_json()},
    )


def euler(s: np.ndarray, x: np.ndarray, denoised_of: object) -> np.ndarray:
    """FlowMatchEuler's own step, x + (s' - s) v with v = (x - D) / s, to s = 0."""
    for here, following in itertools.pairwise([*s, 0.0]):
        v = (x - denoised_of(x, here)) / here  # type: ignore[operator]
        x = x + (following - here) * v
    return x


def test_the_cost_of_a_step_is_its_error_exactly(rng: np.random.Generator) -> None:
    """From any level to any other, and to the end, with predictions that nothing predicts."""
    schedule = even(8)
    denoised = rng.normal(size=(8, 50))
    table = StepTable(calibration(denoised, schedule), EULER, own=even)
    s = np.array(schedule.timesteps) / 1000
    for i, j in itertools.combinations(range(9), 2):
        x = rng.normal(size=50)
        fine = coarse = x
        for k in range(i, j):
            following = s[k + 1] if k < 7 else 0.0
            fine = fine + (following - s[k]) * (fine - denoised[k]) / s[k]
        target = s[j] if j < 8 else 0.0
        coarse = coarse + (target - s[i]) * (coarse - denoised[i]) / s[i]
        error = np.mean((fine - coarse) ** 2) / (1.0 - target) ** 2  # in the VE scaling
        changes, sigmas = table._changes(np.array(schedule.timesteps))
        found = EXACT(changes[0], sigmas)[i, j]
        assert found == pytest.approx(error, rel=1e-4, abs=1e-10)


def test_the_best_schedule_is_the_best_of_all_by_its_cost(rng: np.random.Generator) -> None:
    schedule = even(7)
    table = StepTable(calibration(rng.normal(size=(7, 20)), schedule), EULER, own=even)
    every = [
        (schedule.timesteps[0], *rest) for rest in itertools.combinations(schedule.timesteps[1:], 2)
    ]
    costs = {t: float(table.costs(TimestepSchedule(t, scale=FLOW), EXACT)[0]) for t in every}
    best = table.best(EXACT, 3).schedule
    assert best.timesteps == min(costs, key=lambda t: costs[t])
    assert best.scale == FLOW


def shifted(steps: int, shift: float) -> TimestepSchedule:
    """FlowMatchEuler's own, with a shift: what the field turns by hand."""
    s = np.linspace(1.0, 1.0 / steps, steps)
    s = shift * s / (1 + (shift - 1) * s)
    return TimestepSchedule(tuple(1000.0 * s), is_default=True, scale=FLOW)


@pytest.mark.parametrize("recorded_shift", [1.0, 3.0])
def test_the_table_finds_what_suits_the_data_as_the_best_shift_does(recorded_shift: float) -> None:
    """Gaussian data of several variances, whose denoised prediction is known: even steps are the
    best shift here, and a shift of 5, as video models have it, errs three times as much.
    """
    variances = np.geomspace(0.01, 4.0, 40)

    def denoised_of(x: np.ndarray, s: float) -> np.ndarray:
        # x = (1 - s) x0 + s eps, so E[x0 | x] = (1 - s) v x / ((1 - s)^2 v + s^2)
        found: np.ndarray = (1 - s) * variances * x / ((1 - s) ** 2 * variances + s * s)
        return found

    reference = shifted(100, recorded_shift)
    x, seen = np.ones(40), []
    for here, following in itertools.pairwise([*(np.array(reference.timesteps) / 1000), 0.0]):
        seen.append(denoised_of(x, here))
        x = x + (following - here) * (x - seen[-1]) / here
    table = StepTable(calibration(np.array(seen), reference), EULER, own=even)
    assert objectives_for(EULER)[0] == EXACT

    def error(schedule: TimestepSchedule) -> float:
        made = euler(np.array(schedule.timesteps) / 1000, np.ones(40), denoised_of)
        return float(np.mean((made - x) ** 2))

    for steps in (10, 20):
        shifts = {shift: error(shifted(steps, shift)) for shift in (1.0, 2.0, 3.0, 5.0)}
        assert min(shifts, key=lambda shift: shifts[shift]) == 1.0
        for power, times in ((0.0, 1.35), (0.25, 1.15), (0.5, 1.1)):
            objective = StepObjective("deterministic", 0.5, power)
            found = table.best(objective, steps).schedule
            assert error(found) < times * shifts[1.0]
            assert error(found) < 0.5 * shifts[5.0]


def test_scales() -> None:
    t = np.array([999.0, 500.5, 0.0])
    assert np.array_equal(own_scale().sigmas(t), sigma_of(t))
    assert FLOW.sigmas([1000.0, 500.0, 100.0]) == pytest.approx([MAX_SIGMA, 1.0, 1 / 9])
    zero_snr = NoiseScale.of_alphas([0.99, 0.5, 0.0])
    assert zero_snr.sigmas([2.0, 1.0]) == pytest.approx([MAX_SIGMA, 1.0])
    for scale in (FLOW, zero_snr):
        again = NoiseScale.from_json(scale.as_json())
        assert again.sigmas([2.0, 0.5]) == pytest.approx(scale.sigmas([2.0, 0.5]))
        assert pickle.loads(pickle.dumps(scale)) == scale
    assert len({FLOW, zero_snr, own_scale()}) == 3
    for wrong in ([], [1.0], [1.0, 0.5], "vp", [0.1, float("inf")]):
        with pytest.raises(ValueError, match="scale"):
            NoiseScale.from_json(wrong)
    with pytest.raises(ScheduleError, match=r"must lie in \[0, 999\]"):
        TimestepSchedule((1000.0,))
    assert even(4).is_uniform
    assert not TimestepSchedule(even(4).timesteps, scale=FLOW).is_uniform


def gaussian_walk(
    variances: np.ndarray, schedule: TimestepSchedule, seen: list[np.ndarray]
) -> np.ndarray:
    """x at the end, with what the best denoiser predicts at every step added to `seen`."""
    x, s = np.ones(len(variances)), [*(np.array(schedule.timesteps) / 1000), 0.0]
    sigmas = [*schedule.scale.sigmas(schedule.timesteps), 0.0]
    factors = correction_factors(sigmas, schedule.corrections) or [0.0] * len(schedule)
    for (here, following), factor in zip(itertools.pairwise(s), factors, strict=True):
        seen.append((1 - here) * variances * x / ((1 - here) ** 2 * variances + here * here))
        held = seen[-1]
        if factor:
            held = two_step(held, seen[-2], factor)  # type: ignore[arg-type, assignment]
        x = x + (following - here) * (x - held) / here
    return x


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_table_weighs_the_correction_as_sampling_does(shift: float) -> None:
    """The weight of the two-step rule that is chosen errs little more than the best of those tried,
    and the best schedule that is found less than plain steps of the sampler's own.
    """
    walk = partial(gaussian_walk, np.geomspace(0.01, 4.0, 40))
    seen: list[np.ndarray] = []
    recorded = shifted(100, shift)
    walk(recorded, seen)
    schedules = CorrectedSchedules(
        calibration(np.array(seen), recorded), EULER, own=lambda steps: shifted(steps, shift)
    )
    converged = walk(shifted(2000, shift), [])

    def error(schedule: TimestepSchedule) -> float:
        return float(np.mean((walk(schedule, []) - converged) ** 2))

    for steps in (8, 16):
        own = shifted(steps, shift)
        tried = [error(own.corrected(weight)) for weight in (0.5, 0.75, 1.0)]
        assert error(schedules.uniform(steps).schedule) < 1.5 * min(tried)
        assert error(schedules.of_length(steps)[0][0].schedule) < 0.5 * error(own)


@pytest.mark.parametrize("scale", [0.3, 1.0])
def test_the_coherent_error_ranks_schedules_as_sampling_does(scale: float) -> None:
    """Plain and corrected ones of one length on Gaussian data; the best-ranked errs little more
    than the best.
    """
    walk = partial(gaussian_walk, scale * np.geomspace(0.01, 4.0, 40))
    seen: list[np.ndarray] = []
    walk(shifted(50, 3.0), seen)
    table = StepTable(calibration(np.array(seen), shifted(50, 3.0)), EULER, own=even)
    converged = walk(shifted(2000, 3.0), [])
    tried = [
        shifted(12, shift).corrected(weight)
        for shift in (1.0, 2.0, 3.0, 5.0, 8.0)
        for weight in (0.0, 0.5, 1.0)
    ]
    exact = np.array([np.mean((walk(each, []) - converged) ** 2) for each in tried])
    predicted = np.array([table.coherent(each) for each in tried])
    assert exact[predicted.argmin()] < 2 * exact.min()
    assert spearmanr(exact, predicted).statistic > 0.8

    # Finer steps than were recorded reach below the levels that were.
    finer = shifted(120, 3.0)
    assert finer.timesteps[-1] < table.recorded_K[-1]
    assert 0 <= table.coherent(finer) < table.coherent(shifted(12, 3.0))
    costs = table.costs(finer, EXACT)
    assert 0 <= costs[0] < table.costs(shifted(12, 3.0), EXACT)[0]

    # The costs of steps, in the order in which to try them.
    tried_first = table.by_trust(objectives_for(EULER), 8)
    assert sorted(map(hash, tried_first)) == sorted(map(hash, objectives_for(EULER)))
    errors = [
        np.mean((walk(table.best(each, 8).schedule, []) - converged) ** 2) for each in tried_first
    ]
    assert errors[0] <= 1.5 * min(errors)
