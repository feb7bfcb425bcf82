"""The text-to-video pipeline of Open-Sora-Plan v1.2.

Shapes: b videos, c latent channels, t h w latent frames and size, l tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from einops import rearrange
from torch import Tensor

from osp_opt.base.errors import OptionError, OspOptError, ShapeError
from osp_opt.base.shape import VideoShape, trained_shape
from osp_opt.model.text.encoder import preprocess_prompt, tokenize
from osp_opt.model.vae.autoencoder import VAE_SCALE
from osp_opt.model.vae.tiling import MapTiles, run_tiles
from osp_opt.sampling.denoiser import BlockLoops, Conditions, GuidedDenoiser, Recorder
from osp_opt.sampling.embeddings import PromptEmbeddings
from osp_opt.sampling.noise import GeneratorNoise, NoiseSource, make_noise
from osp_opt.sampling.samplers import (
    StepCallback,
    make_scheduler,
    sample_euler_ancestral,
    sample_with_scheduler,
    set_schedule,
)
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import SAMPLERS, adopt_scheduler, first_sigma, is_stock

__all__ = ["OpenSoraPlanOutput", "OpenSoraPlanPipeline", "PromptEmbeddings"]

OUTPUT_TYPES = ("uint8", "np", "latent")


@dataclass
class OpenSoraPlanOutput(BaseOutput):
    """`videos` [b t h w c]: uint8 tensor, or float array in [0, 1]; for "latent" [b c t h w]."""

    videos: Tensor | np.ndarray[Any, Any]

    @property
    def images(self) -> Tensor | np.ndarray[Any, Any]:
        """The videos under the name of the original pipeline."""
        return self.videos


class OpenSoraPlanPipeline(DiffusionPipeline):
    """Tokenizer, text encoder, video autoencoder, transformer and sampler as one.

    `text_encoder` and `tokenizer` may be None when embeddings are passed in.
    """

    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]
    _optional_components = ["tokenizer", "text_encoder"]  # noqa: RUF012 - diffusers' own form

    def __init__(
        self,
        tokenizer: Any,
        text_encoder: Any,
        vae: Any,
        transformer: Any,
        scheduler: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(  # type: ignore[no-untyped-call]
            tokenizer=tokenizer,
            text_encoder=text_encoder,
            vae=vae,
            transformer=transformer,
            scheduler=make_scheduler(SAMPLERS[0]) if scheduler is None else scheduler,
        )

    @torch.no_grad()
    def encode_prompts(
        self,
        prompts: list[str],
        negative_prompt: str,
        max_sequence_length: int,
        clean_caption: bool = True,
    ) -> PromptEmbeddings:
        """Encode prompts and the negative prompt of all; longer ones are cut.

        `clean_caption` applies the original caption cleaning, else prompts are lower-cased only.
        """
        embeds, mask = self.encode_texts(
            [*prompts, negative_prompt], max_sequence_length, clean_caption
        )
        b = len(prompts)
        return PromptEmbeddings(
            embeds[:b], mask[:b], embeds[b:].expand(b, -1, -1), mask[b:].expand(b, -1)
        )

    @torch.no_grad()
    def encode_texts(
        self, texts: list[str], max_sequence_length: int, clean_caption: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [b l c] and mask [b l] of texts; see `encode_prompts`."""
        if self.text_encoder is None or self.tokenizer is None:
            raise OptionError("the text encoder was released or never given; pass prompt_embeds")
        texts = [preprocess_prompt(text, clean_caption) for text in texts]
        ids, mask = tokenize(self.tokenizer, texts, max_sequence_length)
        device = self.text_encoder.device
        mask = mask.to(device)
        return self.text_encoder(ids.to(device), attention_mask=mask)[0], mask

    @torch.no_grad()
    def generate_latents(
        self,
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
        sequential_guidance: bool = False,
        transformer: Any = None,
    ) -> Tensor:
        """Sample latents [b c t h w], float32 on the transformer's device, times VAE_SCALE.

        Args:
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
            step_callback: called after each step with its index, timestep and latents.
            sequential_guidance: the two guidance branches one after the other: half the memory.
            transformer: called in place of the pipeline's own (the same one spread over ranks).

        Raises:
            ScheduleError: the sampler cannot follow the schedule.
            OptionError: noise or latents do not fit, a prompt is missing.
            OspOptError: the result is not finite.
        """
        model = self.transformer if transformer is None else transformer
        own = isinstance(sampler, str)
        scheduler = make_scheduler(sampler) if own else adopt_scheduler(sampler)
        set_schedule(scheduler, schedule)
        device = model.device
        size = (len(embeddings), model.config.in_channels, *shape.latent())
        guided = guidance_scale > 1.0
        if guided and embeddings.negative is None:
            raise OptionError(f"guidance_scale {guidance_scale} needs a negative prompt")
        conditions = Conditions.encode(
            model,
            embeddings.embeds.to(device),
            embeddings.mask.to(device),
            _moved(embeddings.negative, device) if guided else None,
            sequential_guidance,
        )
        ancestral = is_stock(scheduler, SAMPLERS[0])
        timesteps = schedule.timesteps if ancestral else tuple(scheduler.timesteps.tolist())
        denoiser = GuidedDenoiser(model, conditions, guidance_scale, cache, recorder, timesteps)
        total = len(timesteps)

        def report(step: int, timestep: float, x: Tensor) -> None:
            if step_callback is not None:
                step_callback(step, timestep, x)
            if callback is not None:
                callback(step + 1, total)

        start = float(schedule.sigmas[0]) if ancestral else float(scheduler.init_noise_sigma)
        if latents is None:
            latents = noise.initial(size, first_sigma(scheduler))
        elif latents.shape != size:
            raise ShapeError(f"latents are {tuple(latents.shape)}; {shape} needs {size}")
        x = latents.to(device=device, dtype=torch.float32) * start
        if ancestral:
            x = sample_euler_ancestral(denoiser, x, schedule, noise, report)
        else:
            x = sample_with_scheduler(
                scheduler, denoiser.predict_noise, x, noise, report, schedule.corrections
            )
        if not bool(torch.isfinite(x).all()):  # the only wait for the device
            raise OspOptError(
                f"sampling in {model.dtype} gave NaN or infinite latents; "
                "try --dtype float32, or check the checkpoint and the given latents"
            )
        return x

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, map_tiles: MapTiles = run_tiles) -> Tensor:
        """Videos uint8 [b t h w c] on the CPU from latents as `generate_latents` makes them."""

        def levels(piece: Tensor) -> Tensor:
            return piece.mul_(255).to(torch.uint8).cpu()  # truncates

        return torch.stack([*self._decoded(latents, levels, map_tiles)])

    def _decoded(
        self,
        latents: Tensor,
        finish: Callable[[Tensor], Tensor],
        map_tiles: MapTiles = run_tiles,
    ) -> Iterator[Tensor]:
        """Videos [t h w c]; `finish` makes them of pieces of their frames, float32 in [0, 1].

        One piece after the other and in place: at 93x720p a float32 video is 1 GB.
        """
        latents = latents.to(device=self.vae.device, dtype=self.vae.dtype) / VAE_SCALE
        for one in latents:
            pieces = []
            for piece in self.vae.decode_pieces(one[None], map_tiles):
                frames = rearrange(piece[0].float(), "c t h w -> t h w c")
                pieces.append(finish(frames.div_(2).add_(0.5).clamp_(0, 1)))
            yield pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str = "",
        num_inference_steps: int = 100,
        timesteps: Sequence[float] | None = None,
        guidance_scale: float = 7.5,
        num_images_per_prompt: int = 1,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_attention_mask: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_prompt_attention_mask: Tensor | None = None,
        output_type: str = "uint8",
        return_dict: bool = True,
        callback: StepCallback | None = None,
        clean_caption: bool = True,
        max_sequence_length: int = 512,
        *,
        mask_feature: bool = True,
        device: str | torch.device | None = None,
        schedule: TimestepSchedule | str | Path | None = None,
        seed: int = 0,
        noise: str = "coupled",
        cache: BlockLoops | None = None,
        sequential_guidance: bool = False,
    ) -> OpenSoraPlanOutput | tuple[Any]:
        """Make videos from text.

        Args:
            prompt: one or several; not encoded when `prompt_embeds` is given.
            negative_prompt: what to steer away from, for all prompts.
            num_inference_steps: used when neither `timesteps` nor `schedule` is given.
            timesteps: descending timesteps in [0, 999].
            guidance_scale: classifier-free guidance; 1 is none.
            num_images_per_prompt: videos of each prompt.
            num_frames: of the video; like height and width by default what the model was made for.
            height: in pixels.
            width: in pixels.
            generator: consumed as diffusers does: initial latents, then one draw for each step.
            latents: unit normal [b c t h w] to start from.
            prompt_embeds: [b l c], or [b 1 l c] as in the original.
            prompt_attention_mask: [b l] or [b 1 l], nonzero where a token counts.
            negative_prompt_embeds: as `prompt_embeds`.
            negative_prompt_attention_mask: as `prompt_attention_mask`.
            output_type: "uint8" (tensor [b t h w c]), "np" (float array) or "latent".
            return_dict: whether to return an object or a tuple.
            callback: called after each step with index, timestep and latents.
            clean_caption: the original cleaning of prompts, else only lower case.
            max_sequence_length: tokens at which prompts are cut.
            mask_feature: for the original's callers; padding is always masked.
            device: for the original's callers; where the components are.
            schedule: timesteps as an object, or as the file of a searched schedule.
            seed: without a generator, noise comes from (seed, prompt); counts up per prompt.
            noise: "coupled" (runs of any length make one video) or "independent".
            cache: a `BlockCache`; reset it between videos.
            sequential_guidance: the two guidance branches in turn: half the memory.

        Raises:
            InputError: one of its kinds, for whatever does not fit.
        """
        if output_type not in OUTPUT_TYPES:
            raise OptionError(f"output_type is {output_type!r}; use one of {OUTPUT_TYPES}")
        here = self.transformer.device
        if not mask_feature or (device is not None and torch.device(device).type != here.type):
            raise OptionError(
                f"mask_feature={mask_feature}, device={device}: padding is always masked and the "
                f"components are on {here}; use pipe.to(device)"
            )
        shape = self._shape(num_frames, height, width)
        if timesteps is not None:
            if schedule is not None:
                raise OptionError("timesteps and schedule exclude each other; give one")
            schedule = TimestepSchedule(tuple(float(t) for t in timesteps))
        elif schedule is None:
            schedule = TimestepSchedule.uniform(num_inference_steps)
        elif not isinstance(schedule, TimestepSchedule):
            schedule = TimestepSchedule.from_file(schedule)
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        if prompt_embeds is None:
            if not prompts:
                raise OptionError("give a prompt, or prompt_embeds with prompt_attention_mask")
            embeddings = self.encode_prompts(
                prompts, negative_prompt, max_sequence_length, clean_caption
            )
        else:
            embeddings = PromptEmbeddings(
                _flat(prompt_embeds, 3),
                _flat(prompt_attention_mask, 2),
                _flat(negative_prompt_embeds, 3),
                _flat(negative_prompt_attention_mask, 2),
            )
            prompts = prompts or [""] * len(embeddings)
        embeddings = embeddings.repeated(num_images_per_prompt)
        count = len(embeddings)
        size = (count, self.transformer.config.in_channels, *shape.latent())
        source: NoiseSource
        if generator is not None:
            source = GeneratorNoise(generator, size, embeddings.embeds.dtype)
        else:
            seeds = [seed + i % num_images_per_prompt for i in range(count)]
            keys = [prompts[i // num_images_per_prompt] for i in range(count)]
            source = make_noise(noise, seeds, keys, size[1:])
        if latents is not None and not bool(torch.isfinite(latents).all()):
            raise OptionError("the given latents hold NaN or infinite values")
        with self.progress_bar(total=len(schedule)) as bar:
            result = self.generate_latents(
                embeddings,
                shape,
                schedule,
                source,
                guidance_scale=guidance_scale,
                sampler=self.scheduler,
                latents=latents,
                cache=cache,
                callback=lambda done, total: bar.update(),
                step_callback=callback,
                sequential_guidance=sequential_guidance,
            )
        videos: Any = result
        if output_type == "uint8":
            videos = self.decode_latents(result)
        elif output_type == "np":
            videos = torch.stack([*self._decoded(result, Tensor.cpu)]).numpy()
        self.maybe_free_model_hooks()  # type: ignore[no-untyped-call]
        return OpenSoraPlanOutput(videos=videos) if return_dict else (videos,)

    def _shape(self, num_frames: int | None, height: int | None, width: int | None) -> VideoShape:
        trained = trained_shape(self.transformer.config)
        return VideoShape(
            trained.num_frames if num_frames is None else num_frames,
            trained.height if height is None else height,
            trained.width if width is None else width,
        )


def _flat(x: Tensor | None, ndim: int) -> Any:
    """Drop the axis of size 1 that the original's embeddings [b 1 l c] and masks [b 1 l] have."""
    return x if x is None or x.ndim == ndim else x.flatten(0, 1)


def _moved(pair: Any, device: torch.device) -> Any:
    return None if pair is None else tuple(part.to(device) for part in pair)
