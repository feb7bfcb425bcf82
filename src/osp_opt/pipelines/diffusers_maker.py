"""Other people's pipelines as a `Maker`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from osp_opt.base.samplers import SamplerKind
from osp_opt.cache.paired_steps import PairedSteps
from osp_opt.cache.policy import CachePolicy
from osp_opt.options import CacheMemoryOptions, SamplingOptions
from osp_opt.pipelines.conditions import conditions, measured_by
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline, open_pipeline
from osp_opt.pipelines.driving import StepSeen
from osp_opt.pipelines.files import call_arguments, needs_no_noise
from osp_opt.pipelines.maker import Denoised, Maker, Request
from osp_opt.pipelines.placing import place
from osp_opt.pipelines.requirements import check_offload, check_recorded
from osp_opt.pipelines.setting import Setting
from osp_opt.sampling.levels import same_timesteps
from osp_opt.sampling.noise_scale import FLOW, NoiseScale
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import DTYPES, Device
from osp_opt.system.ranks import Workload

__all__ = ["PipelineMaker"]

FPS = 24.0  # of videos whose pipeline does not say
_ALONE = Workload(heads=1, tokens=1, guided=False)  # each video on one process


@dataclass(frozen=True)
class _Cache:
    """A policy, and where the hooks keep what it reuses."""

    policy: CachePolicy
    dtype: torch.dtype | None = None
    offload: bool = False


class PipelineMaker(Maker):
    """A diffusers pipeline as `--pipeline` and its arguments say, or one that is `loaded`, with its
    own arguments.

    Raises what `open_pipeline` raises.
    """

    def __init__(
        self,
        options: SamplingOptions,
        context: WorkerContext,
        loaded: DiffusersPipeline | None = None,
    ) -> None:
        self.device = context.device
        self.stages = self.device.timer()
        self._offloaded = None  # as far as is known of one that somebody else placed
        opened = loaded
        if opened is None:
            opened, self._offloaded = _opened(options, self.device)
        self._given = opened.arguments
        self._fingerprint = opened.fingerprint
        arguments = call_arguments(options, self._given)
        self.pipeline = opened.called_with(arguments, self.device.synchronize)
        self._decide(options)

    def _decide(self, options: SamplingOptions) -> None:
        self.options = options
        self.guidance_scale = self.pipeline.guidance_scale
        told = self.pipeline.argument("frame_rate") or self.pipeline.argument("fps")
        self.fps: float = options.fps or (float(told) if isinstance(told, (int, float)) else FPS)

    def for_options(self, options: SamplingOptions) -> Self:
        other = copy.copy(self)
        arguments = call_arguments(options, self._given)
        if arguments != self.pipeline.arguments:
            other.pipeline = self.pipeline.called_with(arguments, self.device.synchronize)
        other._decide(options)
        return other

    def with_layout(
        self, context: WorkerContext, videos: int, policy: CachePolicy | None = None
    ) -> tuple[Self, WorkerContext]:
        """One process for each video."""
        workload = replace(_ALONE, items=videos)
        return self, replace(context, parallel=context.parallel.for_workload(workload))

    @property
    def kind(self) -> SamplerKind:
        return self.pipeline.kind

    @property
    def scale(self) -> NoiseScale:
        return self.pipeline.steering.scale

    @property
    def guided(self) -> bool:
        """The first to ask makes one step."""
        return self.pipeline.branches() == 2

    @property
    def reuses_guidance(self) -> bool:
        """Whether there are two branches: one batch, or calls of their own, the positive first."""
        return self.guided and self.pipeline.calls[0] != "negative"

    @property
    def calls_per_step(self) -> int:
        return len(self.pipeline.calls)

    @property
    def boundary(self) -> float | None:
        return self.pipeline.boundary

    @property
    def num_blocks(self) -> int:
        return self.pipeline.num_blocks

    @property
    def makes_images(self) -> bool:
        return bool(self.pipeline.argument("num_frames") == 1)

    @property
    def timed_on(self) -> dict[str, Any]:
        return conditions(
            self.device,
            layout="cfg=1,sp=1",
            compiled=self.options.compile,
            branches=None,
            offloaded=self._offloaded,
        )

    def schedule(self, steps: int) -> TimestepSchedule:
        """Its scheduler's own steps, so many of them."""
        return self.pipeline.schedule(steps)

    def even(self, steps: int) -> TimestepSchedule:
        """These are what every searched schedule has to beat."""
        return self.pipeline.schedule(steps)

    def recorded_schedule(self, steps: int) -> TimestepSchedule:
        """Its own steps. Raises OptionError for fewer than 9, ScheduleError for a scheduler that
        draws fresh noise.
        """
        check_recorded(steps)
        steering = self.pipeline.steering
        needs_no_noise(steering.names, steering.scheduler.config)
        return self.pipeline.schedule(steps)

    def call_timesteps(self, schedule: TimestepSchedule) -> tuple[float, ...]:
        """Those of the schedule: the network runs once at each. Raises ScheduleError."""
        self.pipeline.check(schedule.timesteps, schedule.corrections)
        return schedule.timesteps

    def setting(self, schedule: TimestepSchedule) -> Setting:
        own = self.pipeline.own_levels(len(schedule))
        return Setting(
            model=self._fingerprint,
            steps=len(schedule),
            timesteps=schedule.timesteps,
            sampler=self.pipeline.steering.name,
            dtype=self.device.dtype_name,
            corrections=schedule.corrections,
            arguments=self.pipeline.arguments,
            levels="flow" if self.scale == FLOW else None,
            shift=self.pipeline.steering.shift,
            own_steps=same_timesteps(own, schedule.timesteps),
        )

    def how(self, schedule: TimestepSchedule) -> dict[str, Any]:
        return {
            "setting": self.setting(schedule).as_json(),
            "pipeline": self.pipeline.name,
            "fps": self.fps,
        }

    def recorded_with(self, schedule: TimestepSchedule) -> dict[str, Any]:
        return {
            **self.how(schedule),
            "num_blocks": self.num_blocks,
            "levels": self.scale.as_json(),
            "kind": asdict(self.kind),
            "boundary": self.boundary,
        }

    def digest(self, schedule: TimestepSchedule) -> str:
        options = self.options
        tiling = options.save_memory or options.enable_tiling
        return measured_by(self.how(schedule), self.device, options.compile, tiling)

    def prefetch_prompts(self, prompts: Iterable[str], *, last: bool = True) -> None:
        """Nothing: a pipeline encodes its prompts itself."""

    def block_cache(self, policy: CachePolicy, memory: CacheMemoryOptions) -> _Cache:
        dtype = DTYPES.get(memory.cache_dtype)  # auto: as computed
        return _Cache(policy, dtype, memory.cache_offload)

    def cache_bytes(self, policy: CachePolicy, memory: CacheMemoryOptions) -> int:
        """By what one step shows."""
        return self.pipeline.cache_bytes(policy, self.block_cache(policy, memory).dtype)

    def denoise(
        self,
        request: Request,
        schedule: TimestepSchedule,
        cache: _Cache | None = None,
        callback: Callable[[int, int], object] | None = None,
        recorder: Any = None,
        paired: Any = None,
    ) -> Denoised:
        """With `paired` (see `PairedSteps.run`) each call of the transformer runs without and with
        the cache.
        """

        def seen(step: StepSeen) -> None:
            if recorder is not None:
                recorder.record_denoised(step.index, step.denoised)
            if callback is not None:
                callback(step.index + 1, len(schedule))

        with self.stages.stage("denoise"):
            made = self.pipeline.denoise(
                request.prompt,
                request.seed,
                levels=schedule.timesteps,
                corrections=schedule.corrections,
                cache=None if cache is None else cache.policy,
                cache_dtype=None if cache is None else cache.dtype,
                offload=cache is not None and cache.offload,
                paired=paired,
                watch=recorder,
                on_step=seen,
            )
        return replace(made, timed_on=self.timed_on)

    def decode(self, latents: Tensor, seed: int = 0) -> np.ndarray:
        with self.stages.stage("decode"):
            return self.pipeline.decode(latents, seed)

    def cached_speedup(
        self,
        request: Request,
        schedule: TimestepSchedule,
        policy: CachePolicy,
        memory: CacheMemoryOptions,
    ) -> float:
        cache = self.block_cache(policy, memory)
        timer = PairedSteps(policy, self.device.synchronize)
        self.denoise(request, schedule, cache, paired=timer.run)
        return timer.speedup(len(schedule))


def _opened(options: SamplingOptions, device: Device) -> tuple[DiffusersPipeline, str | None]:
    """The pipeline that the options name, and how it is kept off the device (see `place`)."""
    assert options.pipeline is not None
    if options.offload:
        check_offload(device.name)
    opened = open_pipeline(
        options.pipeline,
        dtype=device.dtype,
        cache_dir=options.cache_dir,
        synchronize=device.synchronize,
    )
    for transformer in opened.transformers.values():
        if device.attention != "native":
            transformer.set_attention_backend(device.attention)  # type: ignore[operator]
    return opened, place(opened, options, device)
