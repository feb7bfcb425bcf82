"""The ancestral sampler against diffusers, exact distributions, and coupled convergence."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from torch import Tensor

from osp_opt.sampling.noise import CoupledNoise, GeneratorNoise, IndependentNoise, NoiseSource
from osp_opt.sampling.samplers import sample_euler_ancestral, sample_with_scheduler
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import make_scheduler, set_schedule
from osp_opt.sampling.steps import ancestral_step, ode_step, vp_scale

OWN = TimestepSchedule((999.0, 811.75, 640.2, 493.3, 366.0, 257.5, 168.0, 97.0, 41.0, 0.0))


def eps_of(x: Tensor, timestep: float) -> Tensor:
    return 0.8 * torch.tanh(x) + 0.1 * math.cos(timestep / 150)


def toy_denoiser(x: Tensor, sigma: float, *, timestep: float, step: int) -> Tensor:
    return x - sigma * eps_of(x / vp_scale(sigma), timestep)


def test_equals_diffusers_with_the_same_noise() -> None:
    shape = (2, 4, 3, 4, 5)
    theirs = EulerAncestralDiscreteScheduler()
    theirs.set_timesteps(20)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(shape, generator=generator) * theirs.init_noise_sigma
    ours_states: list[Tensor] = []
    their_states: list[Tensor] = []
    noise = GeneratorNoise(torch.Generator().manual_seed(3), shape)
    start = noise.initial(shape) * TimestepSchedule.uniform(20).sigmas[0]
    torch.testing.assert_close(start.float(), x, rtol=1e-6, atol=0)
    for t in theirs.timesteps:
        eps = eps_of(theirs.scale_model_input(x, t), float(t))
        x = theirs.step(eps, t, x, generator=generator).prev_sample
        their_states.append(x)
    sample_euler_ancestral(
        toy_denoiser,
        start.float(),
        TimestepSchedule.uniform(20),
        noise,
        lambda i, t, x: ours_states.append(x),
    )
    for ours, want in zip(ours_states, their_states, strict=True):
        torch.testing.assert_close(ours, want, rtol=0, atol=2e-6 * float(their_states[0].max()))


def test_equals_the_scheduler_on_a_schedule_of_its_own() -> None:
    """The same custom timesteps, once in our formulas and once through the diffusers class."""
    shape = (1, 4, 2, 4, 5)
    scheduler = make_scheduler("EulerAncestralDiscrete")
    set_schedule(scheduler, OWN)
    assert scheduler.timesteps.tolist() == list(OWN.timesteps)  # float64, not rounded to float32
    noise = CoupledNoise(1, "a", shape)
    start = noise.initial(shape, OWN.sigmas[0]) * float(OWN.sigmas[0])
    ours = sample_euler_ancestral(toy_denoiser, start, OWN, noise)
    theirs = sample_with_scheduler(
        scheduler, lambda x, *, timestep, step: eps_of(x, timestep), start, noise
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_step_keeps_the_noising_process() -> None:
    """With D the true x0, a step from x0 + a eps must land on x0 + b eps' in distribution."""
    torch.manual_seed(0)
    x0, a, b, n = 1.5, 3.0, 0.7, 200_000
    x = x0 + a * torch.randn(n, dtype=torch.float64)
    y = ancestral_step(x, torch.full_like(x, x0), a, b, torch.randn(n, dtype=torch.float64))
    assert float(y.mean()) == pytest.approx(x0, abs=5 * b / math.sqrt(n))
    assert float(y.var()) == pytest.approx(b**2, rel=5 * math.sqrt(2 / n))
    # x_b and x_a share noise as two levels of one path do: Cov(x_a, x_b) = b^2
    covariance = float(((x - x0) * (y - x0)).mean())
    assert covariance == pytest.approx(b**2, abs=5 * a * b / math.sqrt(n))
    assert torch.equal(ode_step(x, torch.zeros_like(x), a, b), b / a * x)


@pytest.mark.parametrize("kind", [CoupledNoise, IndependentNoise])
def test_samples_have_the_exact_variance(kind: type[CoupledNoise]) -> None:
    """On Gaussian data of variance v every step is linear, so the result's variance is exact."""
    v, n = 0.25, 60_000
    schedule = TimestepSchedule.uniform(12)
    sigmas = schedule.sigmas
    factor, variance = float(sigmas[0]), float(sigmas[0]) ** 2  # of x, step by step
    for a, b in itertools.pairwise(sigmas):
        gain = v / (v + a**2)  # D = gain x
        factor = gain + (b / a) ** 2 * (1 - gain)
        variance = factor**2 * variance + b**2 * (1 - (b / a) ** 2)
    noise = kind(0, "variance", (n,))
    x = sample_euler_ancestral(
        lambda x, sigma, *, timestep, step: v / (v + sigma**2) * x,
        noise.initial((n,), float(sigmas[0])) * float(sigmas[0]),
        schedule,
        noise,
    )
    assert float(x.var()) == pytest.approx(variance, rel=6 * math.sqrt(2 / n))


def coupled_run(noise: NoiseSource, steps: int, n: int) -> Tensor:
    schedule = TimestepSchedule.uniform(steps)
    start = noise.initial((n,), float(schedule.sigmas[0])) * float(schedule.sigmas[0])

    def mixture(x: Tensor, sigma: float, *, timestep: float, step: int) -> Tensor:
        """Exact denoiser of an equal mixture of N(-1, 0.1) and N(1, 0.1)."""
        spread = 0.1 + sigma**2
        weight = torch.tanh(x / spread)
        return (0.1 * x + sigma**2 * weight) / spread

    return sample_euler_ancestral(mixture, start, schedule, noise)


def test_coupled_runs_converge_to_one_result_and_independent_ones_do_not() -> None:
    n = 4000
    best = coupled_run(CoupledNoise(4, "p", (n,)), 400, n)
    errors = [
        float((coupled_run(CoupledNoise(4, "p", (n,)), steps, n) - best).square().mean())
        for steps in (12, 25, 50, 100, 200)
    ]
    assert all(later < 0.7 * earlier for earlier, later in itertools.pairwise(errors))
    fresh = coupled_run(IndependentNoise(4, "p", (n,)), 100, n)
    assert float((fresh - best).square().mean()) > 20 * errors[3]
    # the same two modes, in the same shares
    assert np.abs(float((fresh > 0).float().mean()) - float((best > 0).float().mean())) < 0.05
