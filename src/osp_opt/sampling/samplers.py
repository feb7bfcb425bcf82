"""Samplers: functions of (denoiser, x, schedule, noise).

`sample_euler_ancestral` is the default method in our own formulas. `sample_with_scheduler` drives
any of the ten diffusers schedulers with the same noise sources.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol

from torch import Tensor

from osp_opt.sampling.denoiser import Denoiser
from osp_opt.sampling.noise import NoiseSource
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of
from osp_opt.sampling.schedulers import Scheduler, StochasticScheduler
from osp_opt.sampling.steps import ancestral_step, correction_factors, two_step, vp_scale
from osp_opt.system.device import upload

__all__ = ["StepCallback", "sample_euler_ancestral", "sample_with_scheduler"]

StepCallback = Callable[[int, float, Tensor], Tensor | None]
"""Called after each step with its index, its timestep and the latents it made.

May return latents to go on with in place of these.
"""


class NoisePredictor(Protocol):
    """eps of the network's input x_VE / sqrt(1 + sigma^2), after guidance."""

    def __call__(self, x: Tensor, *, timestep: float, step: int) -> Tensor: ...


def sample_euler_ancestral(
    denoiser: Denoiser,
    x: Tensor,
    schedule: TimestepSchedule,
    noise: NoiseSource,
    callback: StepCallback | None = None,
) -> Tensor:
    """Ancestral sampling with the exact step for a piecewise constant denoised prediction.

    `x` [b c t h w] is x0 + sigma eps (VE scaling) at the schedule's first level; the result is x0.
    Where the schedule has corrections, a step holds D as `two_step` extrapolates it; the noise is
    the same, so corrected runs converge to the same video.
    """
    sigmas = schedule.sigmas.tolist()
    factors = correction_factors(sigmas, schedule.corrections)
    before = x  # the first step has no correction
    for i, (a, b) in enumerate(pairwise(sigmas)):
        denoised = denoiser(x, a, timestep=schedule.timesteps[i], step=i)
        held = two_step(denoised, before, factors[i])
        before = denoised
        z = noise.step(i, a, b)  # also on the last step: a generator is consumed as by diffusers
        x = ancestral_step(x, held, a, b, _like(z, x) if b > 0.0 else None)
        if callback is not None:
            other = callback(i, schedule.timesteps[i], x)
            x = x if other is None else other
    return x


def sample_with_scheduler(
    scheduler: Scheduler,
    predict_noise: NoisePredictor,
    x: Tensor,
    noise: NoiseSource,
    callback: StepCallback | None = None,
    corrections: Sequence[float] = (),
) -> Tensor:
    """Sample with a diffusers scheduler whose timesteps are set (see `set_schedule`).

    `x` [b c t h w] is unit normal noise times `scheduler.init_noise_sigma`, in the scheduler's own
    scaling. `step` counts calls of the network: second-order methods make two per timestep.
    `corrections` are a schedule's, for the methods of first order: the scheduler is given the noise
    that belongs to the extrapolated D.
    """
    sigmas = [*(sigma_of(float(t)) for t in scheduler.timesteps), 0.0]
    factors = correction_factors(sigmas, corrections)
    before = x
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    for i, t in enumerate(scheduler.timesteps):
        timestep = float(t)
        scaled = scheduler.scale_model_input(x, t)
        eps = predict_noise(scaled, timestep=timestep, step=i)
        if corrections:
            denoised = vp_scale(sigmas[i]) * scaled - sigmas[i] * eps
            eps = eps - (two_step(denoised, before, factors[i]) - denoised) / sigmas[i]
            before = denoised
        arguments = {}
        levels = scheduler.noise_levels(i) if isinstance(scheduler, StochasticScheduler) else None
        if levels is not None:
            arguments["variance_noise"] = _like(noise.step(i, *levels), x)
        (x, *_) = scheduler.step(eps, t, x, return_dict=False, **arguments)
        if callback is not None:
            other = callback(i, timestep, x)
            x = x if other is None else other
    return x


def _like(noise: Tensor, x: Tensor) -> Tensor:
    return upload(noise.reshape(x.shape).to(x.dtype), x.device)
