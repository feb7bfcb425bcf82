"""Single guided denoising steps as actions to be timed: osp-opt's and the original's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.subjects import Subject
from benchmarks.speed.upstream import UpstreamStep
from osp_opt.sampling.denoiser import Conditions, GuidedDenoiser
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.steps import ancestral_step

GUIDANCE_SCALE = 7.5
SCHEDULE = TimestepSchedule.uniform(100)
AT = 50  # which step: all cost the same


def optimised(
    subject: Subject,
    *,
    loops: Any = None,
    recorder: Any = None,
    model: Any = None,
    in_turn: bool = False,
) -> Callable[[int], Tensor]:
    """osp-opt's step as a function of its index; prompts and schedule are encoded beforehand.

    ``loops`` is a block cache, ``recorder`` a calibration recorder, ``model`` the transformer
    spread over ranks. ``in_turn`` computes the guidance branches one after the other.
    """
    model = subject.model if model is None else model
    prompts = subject.prompts
    with torch.no_grad():
        conditions = Conditions.encode(
            model,
            prompts.embeds[1:],
            prompts.mask[1:],
            (prompts.embeds[:1], prompts.mask[:1]),
            in_turn,
        )
        denoiser = GuidedDenoiser(
            model, conditions, GUIDANCE_SCALE, loops, recorder, SCHEDULE.timesteps
        )
    sigmas = SCHEDULE.sigmas.tolist()
    x, z = subject.latents(0) * sigmas[AT], subject.latents(1)

    @torch.no_grad()
    def step(index: int = AT) -> Tensor:
        denoised = denoiser(x, sigmas[AT], timestep=SCHEDULE.timesteps[AT], step=index)
        return ancestral_step(x, denoised, sigmas[AT], sigmas[AT + 1], z)

    return step


def original(subject: Subject, *, compiled: bool = False) -> Callable[[], Tensor]:
    """The original's step on the same weights, prompts, latents and noise."""
    prompts = subject.prompts
    upstream = UpstreamStep(subject.model, prompts.embeds, prompts.mask, GUIDANCE_SCALE)
    if compiled:
        upstream.compile()
    sigmas = SCHEDULE.sigmas.tolist()
    x, z = subject.latents(0) * sigmas[AT], subject.latents(1)

    @torch.no_grad()
    def step() -> Tensor:
        return upstream(x, sigmas[AT], sigmas[AT + 1], SCHEDULE.timesteps[AT], z)

    return step
