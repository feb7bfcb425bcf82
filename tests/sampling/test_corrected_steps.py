"""Corrected steps: on the Gaussian model exactly, of second order without noise, or refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from osp_opt.base.errors import ScheduleError
from osp_opt.base.samplers import SAMPLER_KINDS
from osp_opt.sampling.noise import CoupledNoise
from osp_opt.sampling.samplers import sample_euler_ancestral, sample_with_scheduler
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of
from osp_opt.sampling.schedulers import make_scheduler, set_schedule
from osp_opt.sampling.steps import correction_factors, vp_scale
from tests.helpers.gaussian_model import VARIANCES, coupled_error, multistep_result

FINE = TimestepSchedule.uniform(200)


class Gaussian:
    """The exact denoiser of independent Gaussian modes, as a denoiser and a noise predictor."""

    def __init__(self, variances: Tensor) -> None:
        self.variances = variances

    def __call__(self, x: Tensor, sigma: float, *, timestep: float, step: int) -> Tensor:
        return self.variances / (self.variances + sigma**2) * x

    def predict_noise(self, x: Tensor, *, timestep: float, step: int) -> Tensor:
        sigma = sigma_of(timestep)
        x = x * vp_scale(sigma)
        return (x - self(x, sigma, timestep=timestep, step=step)) / sigma


def ancestral(schedule: TimestepSchedule, shape: tuple[int, ...], variances: Tensor) -> Tensor:
    noise = CoupledNoise(3, "modes", shape)
    first = float(schedule.sigmas[0])
    start = noise.initial(shape, first) * first
    return sample_euler_ancestral(Gaussian(variances), start, schedule, noise)


def with_scheduler(name: str, schedule: TimestepSchedule, start: Tensor, variances: Tensor) -> Any:
    scheduler = make_scheduler(name)
    set_schedule(scheduler, schedule)
    x = start * float(scheduler.init_noise_sigma)
    noise = CoupledNoise(3, "modes", tuple(start.shape))
    predict = Gaussian(variances).predict_noise
    return sample_with_scheduler(scheduler, predict, x, noise, corrections=schedule.corrections)


def test_no_correction_is_the_plain_sampler_bit_for_bit() -> None:
    variances = torch.linspace(0.05, 2.0, 50)
    plain = TimestepSchedule.uniform(12)
    zero = TimestepSchedule(plain.timesteps, corrections=(0.0,) * 12)
    assert zero == plain
    assert plain.corrected(0.0) == plain
    assert torch.equal(ancestral(zero, (50,), variances), ancestral(plain, (50,), variances))
    assert not torch.equal(
        ancestral(plain.corrected(0.5), (50,), variances), ancestral(plain, (50,), variances)
    )


def test_the_strong_error_is_the_exact_one() -> None:
    """Sampled on one Brownian path beside a finer run: the mean square that mathematics says."""
    n, v, weight = 4000, 0.3, 0.5
    schedule = TimestepSchedule.uniform(25)
    found = ancestral(schedule.corrected(weight), (n,), torch.tensor(v))
    found = found - ancestral(FINE, (n,), torch.tensor(v))
    own = np.array(schedule.timesteps)
    exact = coupled_error(own, np.array(FINE.timesteps), np.array([v]), weight)
    assert float(found.square().mean()) == pytest.approx(exact, rel=5 * math.sqrt(2 / n))


def test_half_a_correction_lessens_the_strong_error_and_keeps_its_order() -> None:
    fine = np.array(TimestepSchedule.uniform(1000).timesteps)
    errors = {
        weight: [
            coupled_error(np.array(TimestepSchedule.uniform(n).timesteps), fine, correction=weight)
            for n in (20, 40, 80)
        ]
        for weight in (0.0, 0.5)
    }
    shares = [half / plain for plain, half in zip(errors[0.0], errors[0.5], strict=True)]
    assert shares[0] < 0.8
    assert shares == sorted(shares, reverse=True)  # the finer, the more it takes away
    # Of strong order one, as the plain step: half as long, about a quarter of the mean square.
    assert errors[0.5][2] < errors[0.5][1] / 3 < errors[0.5][0] / 9


@pytest.mark.parametrize("name", ["EulerDiscrete", "DDIM"])
def test_a_full_correction_without_noise_is_the_multistep_solver(name: str) -> None:
    variances = torch.tensor(VARIANCES[::40], dtype=torch.float64)
    timesteps = tuple(float(round(t)) for t in TimestepSchedule.uniform(30).timesteps)
    schedule = TimestepSchedule(timesteps).corrected(1.0)
    start = torch.ones(len(variances), dtype=torch.float64)
    if name == "DDIM":  # its first value is in the other scaling
        start = start * float(schedule.sigmas[0]) / vp_scale(float(schedule.sigmas[0]))
    found = with_scheduler(name, schedule, start, variances)
    want = multistep_result(np.array(timesteps), VARIANCES[::40])
    np.testing.assert_allclose(found.numpy(), want, rtol=2e-4)


def test_the_scheduler_takes_the_same_corrected_steps() -> None:
    """Ancestral steps in our formulas, and with the diffusers class that is told other noise."""
    variances = torch.linspace(0.05, 2.0, 60)
    schedule = TimestepSchedule((999.0, 811.75, 640.2, 366.0, 168.0, 41.0, 0.0)).corrected(0.5)
    noise = CoupledNoise(3, "modes", (60,))
    start = noise.initial((60,), float(schedule.sigmas[0]))
    found = with_scheduler("EulerAncestralDiscrete", schedule, start, variances)
    want = ancestral(schedule, (60,), variances)
    torch.testing.assert_close(found, want, rtol=0, atol=2e-3)


def test_factors() -> None:
    """Steps of one length in log sigma: a / 2 each; a longer step extrapolates further."""
    even = [8.0, 4.0, 2.0, 1.0, 0.0]
    assert correction_factors(even, (0.0, 1.0, 0.5, 0.0)) == pytest.approx([0, 0.5, 0.25, 0])
    assert correction_factors([8.0, 4.0, 1.0, 0.5, 0.0], (0, 1, 1, 0)) == pytest.approx(
        [0, 1.0, 0.25, 0]
    )
    assert correction_factors(even, ()) == [0.0] * 4


@pytest.mark.parametrize(
    ("corrections", "said"),
    [
        ((0.0, 0.5), "2 corrections for 4 steps"),
        ((0.0, 4.5, 0.5, 0.0), "correction 1 is 4.5"),
        ((0.0, math.nan, 0.5, 0.0), "correction 1 is nan"),
        ((0.5, 0.5, 0.5, 0.0), "first and the last"),
        ((0.0, 0.5, 0.5, 0.5), "first and the last"),
    ],
)
def test_impossible_corrections_are_refused(corrections: tuple[float, ...], said: str) -> None:
    with pytest.raises(ScheduleError, match=said):
        TimestepSchedule((900.0, 600.0, 300.0, 0.0), corrections=corrections)


@pytest.mark.parametrize("name", SAMPLER_KINDS)
def test_samplers_of_second_order_refuse_corrections(name: str) -> None:
    kind = SAMPLER_KINDS[name]
    schedule = TimestepSchedule((900.0, 600.0, 300.0, 0.0)).corrected(0.5)
    if kind.takes_corrections:
        set_schedule(make_scheduler(name), schedule)
        return
    with pytest.raises(ScheduleError, match="takes no corrected steps"):
        set_schedule(make_scheduler(name), schedule)
