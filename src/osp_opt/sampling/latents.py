"""Latents of videos from embedded prompts, and videos from latents.

b videos, c latent channels, t h w latent frames and size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from osp_opt.base.errors import OptionError, OspOptError, ShapeError
from osp_opt.base.shape import VideoShape
from osp_opt.model.vae.autoencoder import VAE_SCALE
from osp_opt.model.vae.tiling import MapTiles, run_tiles
from osp_opt.sampling.denoiser import BlockLoops, Conditions, GuidedDenoiser, Recorder
from osp_opt.sampling.embeddings import PromptEmbeddings
from osp_opt.sampling.noise import NoiseSource
from osp_opt.sampling.offload import execution_device
from osp_opt.sampling.samplers import (
    StepCallback,
    sample_euler_ancestral,
    sample_with_scheduler,
)
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import (
    SAMPLERS,
    adopt_scheduler,
    first_sigma,
    is_stock,
    make_scheduler,
    set_schedule,
)

__all__ = ["Interrupted", "StepEnd", "decode_videos", "sample_latents"]

StepEnd = Callable[[GuidedDenoiser, int, float, Tensor], Tensor | None]


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """Somebody asked the run to stop; it ends with these latents."""

    def __init__(self, latents: Tensor) -> None:
        self.latents = latents


@torch.no_grad()
def sample_latents(
    transformer: Any,
    embeddings: PromptEmbeddings,
    shape: VideoShape,
    schedule: TimestepSchedule,
    noise: NoiseSource,
    *,
    guidance_scale: float,
    sampler: str | Any = SAMPLERS[0],
    latents: Tensor | None = None,
    cache: BlockLoops | None = None,
    recorder: Recorder | None = None,
    callback: Callable[[int, int], None] | None = None,
    step_callback: StepCallback | None = None,
    on_step_end: StepEnd | None = None,
    sequential_guidance: bool = False,
) -> Tensor:
    """Sample latents [b c t h w], float32 on the transformer's device, times VAE_SCALE.

    Args:
        transformer: an OpenSoraT2V, or one spread over ranks.
        embeddings: of b prompts, with negative ones unless guidance is off.
        shape: of each video.
        schedule: its default form means the sampler's own spacing of that many steps.
        noise: draws of b videos; for one video also without the b axis.
        guidance_scale: 1 or less evaluates the prompt alone.
        sampler: a name from SAMPLERS, or one of their diffusers schedulers.
        latents: unit normal start in place of the noise's own.
        cache: supplies the block loop of each step, counted in evaluations of the network.
        recorder: likewise, and is given the denoised predictions; excludes `cache`.
        callback: called after each step with the steps done so far and their number.
        step_callback: called after each step with its index, timestep and latents; may return
            others.
        on_step_end: likewise, with the denoiser before them.
        sequential_guidance: the two guidance branches one after the other: half the memory.

    Raises:
        ScheduleError: the sampler cannot follow the schedule.
        OptionError: noise or latents do not fit, a prompt is missing.
        OspOptError: the result is not finite.
    """
    own = isinstance(sampler, str)
    scheduler = make_scheduler(sampler) if own else adopt_scheduler(sampler)
    set_schedule(scheduler, schedule)
    device = execution_device(transformer)
    size = (len(embeddings), transformer.config.in_channels, *shape.latent())
    guided = guidance_scale > 1.0
    if guided and embeddings.negative is None:
        raise OptionError(f"guidance_scale {guidance_scale} needs a negative prompt")
    here = embeddings.to(device)
    conditions = Conditions.encode(
        transformer,
        here.embeds,
        here.mask,
        here.negative if guided else None,
        sequential_guidance,
    )
    ancestral = is_stock(scheduler, SAMPLERS[0])
    timesteps = schedule.timesteps if ancestral else tuple(scheduler.timesteps.tolist())
    denoiser = GuidedDenoiser(transformer, conditions, guidance_scale, cache, recorder, timesteps)
    total = len(timesteps)

    def report(step: int, timestep: float, x: Tensor) -> Tensor | None:
        other = None if step_callback is None else step_callback(step, timestep, x)
        if callback is not None:
            callback(step + 1, total)
        if on_step_end is not None:
            other = on_step_end(denoiser, step, timestep, x if other is None else other)
        return other

    start = float(schedule.sigmas[0]) if ancestral else float(scheduler.init_noise_sigma)
    if latents is None:
        latents = noise.initial(size, first_sigma(scheduler))
    elif latents.shape != size:
        raise ShapeError(f"latents are {tuple(latents.shape)}; {shape} needs {size}")
    x = latents.to(device=device, dtype=torch.float32) * start
    try:
        if ancestral:
            x = sample_euler_ancestral(denoiser, x, schedule, noise, report)
        else:
            x = sample_with_scheduler(
                scheduler, denoiser.predict_noise, x, noise, report, schedule.corrections
            )
    except Interrupted as interrupted:
        x = interrupted.latents
    # The only wait for the device ("meta" has no values to look at).
    if x.device.type != "meta" and not bool(torch.isfinite(x).all()):
        raise OspOptError(
            f"sampling in {transformer.dtype} gave NaN or infinite latents; "
            "try --dtype float32, or check the checkpoint and the given latents"
        )
    return x


@torch.no_grad()
def decode_videos(
    vae: Any,
    latents: Tensor,
    finish: Callable[[Tensor], Tensor],
    map_tiles: MapTiles = run_tiles,
) -> Iterator[Tensor]:
    """Videos [t h w c]; `finish` makes them of pieces of their frames, float32 in [0, 1].

    One piece after the other and in place: at 93x720p a float32 video is 1 GB.
    """
    if vae is None:
        raise OptionError("this pipeline has no autoencoder; use output_type='latent'")
    latents = latents.to(device=execution_device(vae), dtype=vae.dtype) / VAE_SCALE
    for one in latents:
        pieces = []
        for piece in vae.decode_pieces(one[None], map_tiles):
            frames = rearrange(piece[0].float(), "c t h w -> t h w c")
            pieces.append(finish(frames.div_(2).add_(0.5).clamp_(0, 1)))
        yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)
