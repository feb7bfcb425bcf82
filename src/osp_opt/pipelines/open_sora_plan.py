"""Open-Sora-Plan's models as a `Maker`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from osp_opt.base.errors import OptionError
from osp_opt.base.samplers import FOLLOW_TIMESTEPS, SAMPLER_KINDS, SamplerKind
from osp_opt.cache.paired_steps import PairedTimer
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.model.parallelize import parallelize_transformer, spread_tiles, workload
from osp_opt.model.vae.autoencoder import VAE_SCALE
from osp_opt.options import CacheMemoryOptions, SamplingOptions
from osp_opt.pipelines.conditions import conditions, measured_by
from osp_opt.pipelines.load import LoadedModel, load_pipeline, release_text_encoder
from osp_opt.pipelines.maker import Denoised, Maker, Request
from osp_opt.pipelines.setting import Setting
from osp_opt.sampling.embeddings import PromptEmbeddings, encode_texts
from osp_opt.sampling.latents import sample_latents
from osp_opt.sampling.noise import make_noise
from osp_opt.sampling.noise_scale import NoiseScale
from osp_opt.sampling.schedule import TimestepSchedule, own_scale
from osp_opt.sampling.schedulers import call_timesteps
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import DTYPES
from osp_opt.system.parallel import Parallel
from osp_opt.system.ranks import Workload, check_layout

__all__ = ["VideoMaker", "can_be_recorded", "recorded_levels"]

PROMPTS_KEPT = 64  # embeddings: 4 MB each at 512 tokens of mT5-xxl


class VideoMaker(Maker):
    """A released model, the bundled one, or one that is `loaded`.

    Raises what loading raises: CheckpointError, and ShapeError for a shape it was not trained for.
    """

    def __init__(
        self,
        options: SamplingOptions,
        context: WorkerContext,
        loaded: LoadedModel | None = None,
    ) -> None:
        self.device = context.device
        self.loaded = load_pipeline(options, context.device) if loaded is None else loaded
        self.pipeline = self.loaded.pipeline
        self._embeddings: dict[str, PromptEmbeddings] = {}
        self._negative: tuple[Tensor, Tensor] | None = None
        self.stages = self.device.timer()
        self._decide(options)
        check_layout(context.parallel.layout, self.workload())
        self._spread_over(context.parallel)

    def _decide(self, options: SamplingOptions) -> None:
        """Everything that the options leave to the model's defaults."""
        self.options = options
        defaults = self.loaded.defaults
        self.shape = defaults.shape(options.num_frames, options.height, options.width)
        self.shape.check_trained(self.loaded.transformer_config, options.allow_untrained_shape)
        self.guidance_scale: float = _given(options.guidance_scale, defaults.guidance_scale)
        self.negative_prompt: str = _given(options.negative_prompt, defaults.negative_prompt)
        self.fps: float = _given(options.fps, defaults.fps)
        self.max_sequence_length: int = _given(
            options.max_sequence_length, defaults.max_sequence_length
        )

    def for_options(self, options: SamplingOptions) -> Self:
        other = copy.copy(self)
        other._decide(options)
        if other._text_settings() != self._text_settings():
            other._embeddings, other._negative = {}, None
        return other

    def _text_settings(self) -> tuple[str, int]:
        return self.negative_prompt, self.max_sequence_length

    def with_layout(
        self, context: WorkerContext, videos: int, policy: CachePolicy | None = None
    ) -> tuple[Self, WorkerContext]:
        rests = policy is not None and policy.guidance is not None
        workload = replace(self.workload(videos), one_branch_rests=rests)
        parallel = context.parallel.for_workload(workload)
        other = copy.copy(self)
        other._spread_over(parallel)
        return other, replace(context, parallel=parallel)

    def workload(self, videos: int | None = None) -> Workload:
        """What a layout has to divide; `videos` is how many are to be made, if that is known."""
        work = workload(self.loaded.transformer_config, self.shape.latent(), self.guided)
        return replace(work, items=videos)

    @property
    def timed_on(self) -> dict[str, Any]:
        cfg, sp = self._layout.cfg, self._layout.sp
        one = self.sequential_guidance or not self.guided
        return conditions(
            self.device,
            layout=f"cfg={cfg},sp={sp}",
            compiled=self.options.compile,
            branches=1 if one else 2,
        )

    def _spread_over(self, parallel: Parallel) -> None:
        self._layout = parallel.layout
        self._transformer = parallelize_transformer(self.pipeline.transformer, parallel)
        self._map_tiles = spread_tiles(parallel.replica)
        # One branch after the other needs half the memory; ranks that hold one each do already.
        self.sequential_guidance = self.options.save_memory and parallel.layout.cfg == 1

    @property
    def transformer(self) -> Any:
        """The transformer, spread over the ranks that make one video."""
        return self._transformer

    @property
    def guided(self) -> bool:
        return self.guidance_scale > 1.0

    @property
    def kind(self) -> SamplerKind:
        return SAMPLER_KINDS[self.options.sampler]

    @property
    def makes_images(self) -> bool:
        return self.shape.num_frames == 1

    @property
    def reuses_guidance(self) -> bool:
        return self.guided

    @property
    def calls_per_step(self) -> int:
        """One for both guidance branches, or one for each in turn."""
        return 2 if self.sequential_guidance and self.guided else 1

    @property
    def boundary(self) -> float | None:
        """There is one transformer."""
        return None

    @property
    def num_blocks(self) -> int:
        return int(self.loaded.transformer_config["num_layers"])

    @cached_property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(c, t, h, w) of one video's latents."""
        return self.shape.latent_tensor(int(self.loaded.transformer_config["in_channels"]))

    def schedule(self, steps: int) -> TimestepSchedule:
        """Evenly spaced steps, or the sampler's own spacing of so many."""
        return TimestepSchedule.uniform(steps)

    def even(self, steps: int) -> TimestepSchedule:
        """Evenly spaced steps, for every sampler."""
        return TimestepSchedule(TimestepSchedule.uniform(steps).timesteps)

    @property
    def scale(self) -> NoiseScale:
        return own_scale()

    def recorded_schedule(self, steps: int) -> TimestepSchedule:
        return recorded_levels(self.options.sampler, steps)

    def call_timesteps(self, schedule: TimestepSchedule) -> tuple[float, ...]:
        return call_timesteps(self.options.sampler, schedule)

    def block_cache(self, policy: CachePolicy, memory: CacheMemoryOptions) -> BlockCache:
        dtype = DTYPES.get(memory.cache_dtype)  # auto: as computed
        return BlockCache(policy, dtype=dtype, offload=memory.cache_offload)

    def cache_bytes(self, policy: CachePolicy, memory: CacheMemoryOptions) -> int:
        """By the shape of the hidden state."""
        return self.pipeline.cache_bytes(
            policy,
            self.shape.num_frames,
            self.shape.height,
            self.shape.width,
            guidance_scale=self.guidance_scale,
            dtype=DTYPES.get(memory.cache_dtype),
        )

    def setting(self, schedule: TimestepSchedule) -> Setting:
        return Setting(
            model=self.loaded.fingerprint,
            steps=len(schedule),
            timesteps=schedule.timesteps,
            num_frames=self.shape.num_frames,
            height=self.shape.height,
            width=self.shape.width,
            sampler=self.options.sampler,
            guidance_scale=self.guidance_scale,
            dtype=self.device.dtype_name,
            corrections=schedule.corrections,
        )

    def how(self, schedule: TimestepSchedule) -> dict[str, Any]:
        return {
            "setting": self.setting(schedule).as_json(),
            "noise": self.options.noise,
            "negative_prompt": self.negative_prompt,
            "max_sequence_length": self.max_sequence_length,
            "fps": self.fps,
        }

    def recorded_with(self, schedule: TimestepSchedule) -> dict[str, Any]:
        return {**self.how(schedule), "num_blocks": self.num_blocks}

    def embed(self, prompt: str) -> PromptEmbeddings:
        """The prompt's embeddings. The last ones are kept, or all where the text encoder goes; so
        is the negative prompt that all share.
        """
        if prompt not in self._embeddings:
            text = self.loaded.defaults.prompt_template.replace("{}", prompt)
            with self._in_use("encode text", self.pipeline.text_encoder):
                if self._negative is None:
                    self._negative = self._encoded(self.negative_prompt)
                self._embeddings[prompt] = PromptEmbeddings(*self._encoded(text), *self._negative)
            if not self._prefetches and len(self._embeddings) > PROMPTS_KEPT:
                del self._embeddings[next(iter(self._embeddings))]
        return self._embeddings[prompt]

    @property
    def _prefetches(self) -> bool:
        return self.options.offload or self.options.save_memory

    def digest(self, schedule: TimestepSchedule) -> str:
        options = self.options
        tiling = [options.enable_tiling, options.tile_overlap_factor, options.save_memory]
        return measured_by(self.how(schedule), self.device, options.compile, tiling)

    def prefetch_prompts(self, prompts: Iterable[str], *, last: bool = True) -> None:
        """`offload` moves the text encoder for all of them at once, `save_memory` drops it."""
        if not self._prefetches:
            return
        with self._in_use("encode text", self.pipeline.text_encoder):
            for prompt in prompts:
                self.embed(prompt)
        if self.options.save_memory and last:
            release_text_encoder(self.pipeline)
            self.device.empty_cache()

    @contextmanager
    def _in_use(self, stage: str, part: Any) -> Iterator[None]:
        """A measured stage, with `part` on the device for its time where it is kept off it."""
        moves = self.options.offload and part is not None and part.device.type == "cpu"
        with self.stages.stage(stage):
            if moves:
                part.to(self.device.torch_device)
            try:
                yield
            finally:
                if moves:
                    part.to("cpu")
                    self.device.empty_cache()

    def _encoded(self, text: str) -> tuple[Tensor, Tensor]:
        pipeline = self.pipeline
        return encode_texts(
            pipeline.tokenizer, pipeline.text_encoder, [text], self.max_sequence_length
        )

    def denoise(
        self,
        request: Request,
        schedule: TimestepSchedule,
        cache: Any = None,
        callback: Any = None,
        recorder: Any = None,
        transformer: Any = None,
    ) -> Denoised:
        """Another `transformer` may stand in for the loaded one."""
        embeddings = self.embed(request.prompt)
        noise = make_noise(self.options.noise, [request.seed], [request.prompt], self.latent_shape)
        if cache is not None:
            cache.reset()
        with self.stages.stage("denoise"):
            latents = sample_latents(
                self._transformer if transformer is None else transformer,
                embeddings,
                self.shape,
                schedule,
                noise,
                guidance_scale=self.guidance_scale,
                sampler=self.options.sampler,
                cache=cache,
                recorder=recorder,
                callback=callback,
                sequential_guidance=self.sequential_guidance,
            )
        return Denoised(latents, self.stages.seconds["denoise"], self.timed_on)

    def cached_speedup(
        self,
        request: Request,
        schedule: TimestepSchedule,
        policy: CachePolicy,
        memory: CacheMemoryOptions,
    ) -> float:
        timer = PairedTimer(self.block_cache(policy, memory), self.device.synchronize)
        self.denoise(request, schedule, timer)
        return timer.speedup(len(self.call_timesteps(schedule)))

    def decode(self, latents: Tensor, seed: int = 0) -> np.ndarray:
        with self._in_use("decode", self.pipeline.vae):
            frames: np.ndarray = self.pipeline.decode_latents(latents, self._map_tiles)[0].numpy()
        return frames

    @torch.no_grad()
    def encode(self, frames: np.ndarray) -> Tensor:
        """Scaled latents [1 c t h w], float32, of uint8 frames [t h w c]: the posterior's mean."""
        vae = self.pipeline.vae
        video = rearrange(torch.from_numpy(frames), "t h w c -> 1 c t h w").float() / 127.5 - 1.0
        with self._in_use("encode video", vae):
            video = video.to(device=self.device.torch_device, dtype=vae.dtype)
            latents: Tensor = (
                vae.encode(video, self._map_tiles).latent_dist.mode().float() * VAE_SCALE
            )
        return latents


MIN_RECORDED = 4  # steps that tell whether a sampler can be recorded


def can_be_recorded(sampler: str) -> bool:
    """Whether `sampler` evaluates the model once at each of its levels, and can be told them."""
    try:
        recorded_levels(sampler, MIN_RECORDED)
    except OptionError:
        return False
    return True


def recorded_levels(sampler: str, steps: int) -> TimestepSchedule:
    """The levels at which `sampler` evaluates the model in `steps` even steps.

    Raises OptionError for samplers that cannot be told their timesteps or evaluate the model
    twice a step: their predictions do not lie on one level each.
    """
    even = TimestepSchedule(TimestepSchedule.uniform(steps).timesteps)
    if sampler in FOLLOW_TIMESTEPS:
        levels = call_timesteps(sampler, even)
        if len(set(levels)) == len(levels) == steps:
            return TimestepSchedule(levels)
    raise OptionError(
        f"--sampler {sampler}: calibrate needs one model evaluation at each of its levels; "
        "calibrate with EulerDiscrete or EulerAncestralDiscrete, the result serves this one too"
    )


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value
