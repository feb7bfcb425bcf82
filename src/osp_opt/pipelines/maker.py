"""What makes videos: the one interface that everything above speaks to, whatever the model is.

Two families fill it: Open-Sora-Plan's models (`pipelines.open_sora_plan`) and diffusers' pipelines
(`pipelines.diffusers_maker`). Nothing above this folder asks which of the two it has.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from osp_opt.base.samplers import SamplerKind
from osp_opt.system.host import importing

if TYPE_CHECKING:
    from typing import Self

    import numpy as np
    from torch import Tensor

    from osp_opt.cache.policy import CachePolicy
    from osp_opt.options import CacheMemoryOptions, SamplingOptions
    from osp_opt.pipelines.setting import Setting
    from osp_opt.sampling.noise_scale import NoiseScale
    from osp_opt.sampling.schedule import TimestepSchedule
    from osp_opt.system.context import WorkerContext
    from osp_opt.system.device import Device
    from osp_opt.system.timing import Timer

__all__ = ["Denoised", "Maker", "Request", "open_maker"]


@dataclass(frozen=True)
class Request:
    """One video: the prompt as the user wrote it, and its seed."""

    prompt: str
    seed: int

    def as_json(self) -> dict[str, Any]:
        """As lists of videos and sidecars name it."""
        return {"prompt": self.prompt, "seed": self.seed}

    @property
    def slug(self) -> str:
        """The prompt as part of a file name: at most 40 letters of any script, and digits."""
        text = unicodedata.normalize("NFC", self.prompt.lower())
        kept = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
        return "-".join(kept.split())[:40].strip("-") or "video"


@dataclass(frozen=True)
class Denoised:
    """Latents of one video in the model's own layout (first axis 1), the seconds of denoising that
    made them, and under what conditions (`Maker.timed_on`; None where nobody noted it).
    """

    latents: Tensor
    seconds: float
    timed_on: dict[str, Any] | None = None


class Maker(Protocol):
    """A loaded model that makes videos as its options say, everything left open decided."""

    options: SamplingOptions
    device: Device
    stages: Timer
    guidance_scale: float
    fps: float

    @property
    def kind(self) -> SamplerKind:
        """What its sampler is to a search of steps."""
        ...

    @property
    def scale(self) -> NoiseScale:
        """Which noise level a timestep is: what a `TimestepSchedule` of this model is made with."""
        ...

    @property
    def guided(self) -> bool:
        """Whether a step evaluates two branches (classifier-free guidance)."""
        ...

    @property
    def reuses_guidance(self) -> bool:
        """Whether a cache policy may reuse guidance: there is some, and it can be left out."""
        ...

    @property
    def calls_per_step(self) -> int:
        """How often a step calls the transformer: once, or once for each guidance branch."""
        ...

    @property
    def boundary(self) -> float | None:
        """The timestep from which on, downwards, a second transformer makes the steps: nothing is
        reused across it. None where there is one transformer.
        """
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of the transformer, as a cache policy numbers them."""
        ...

    @property
    def makes_images(self) -> bool:
        """Whether a video is one frame."""
        ...

    @property
    def timed_on(self) -> dict[str, Any]:
        """The conditions under which its videos are timed, as JSON values: speeds are compared
        where they agree.
        """
        ...

    def schedule(self, steps: int) -> TimestepSchedule:
        """The model's own steps, so many of them."""
        ...

    def even(self, steps: int) -> TimestepSchedule:
        """The steps that every searched schedule of that length has to beat, level by level."""
        ...

    def recorded_schedule(self, steps: int) -> TimestepSchedule:
        """The levels at which a calibration of so many steps evaluates the model, once each.

        Raises OptionError for a sampler that cannot be recorded.
        """
        ...

    def call_timesteps(self, schedule: TimestepSchedule) -> tuple[float, ...]:
        """Timestep of every network evaluation: the steps as a cache counts them.

        Raises ScheduleError for a schedule that cannot be followed.
        """
        ...

    def setting(self, schedule: TimestepSchedule) -> Setting:
        """What a searched artifact has to fit."""
        ...

    def how(self, schedule: TimestepSchedule) -> dict[str, Any]:
        """What decides a video besides its prompt and seed and a cache, as JSON values."""
        ...

    def recorded_with(self, schedule: TimestepSchedule) -> dict[str, Any]:
        """The metadata of a calibration: `how`, and what the searches have to know of the model."""
        ...

    def digest(self, schedule: TimestepSchedule) -> str:
        """Names everything that decides what is measured with this maker, for ledgers."""
        ...

    def for_options(self, options: SamplingOptions) -> Self:
        """The same loaded model, sampling as other options say that differ in nothing it loads."""
        ...

    def with_layout(
        self, context: WorkerContext, videos: int, policy: CachePolicy | None = None
    ) -> tuple[Self, WorkerContext]:
        """This maker and `context` in the layout for making that many videos, by `policy`
        (collective): as few ranks as possible stay idle.

        Raises OptionError when the layout asked for cannot make them, naming those that can.
        """
        ...

    def prefetch_prompts(self, prompts: Iterable[str], *, last: bool = True) -> None:
        """Encode the prompts that will be asked for, where that saves memory; `last` says that no
        others will be.
        """
        ...

    def block_cache(self, policy: CachePolicy, memory: CacheMemoryOptions) -> Any:
        """What `denoise` takes as its `cache`, to follow `policy`."""
        ...

    def cache_bytes(self, policy: CachePolicy, memory: CacheMemoryOptions) -> int:
        """What the cache of one video holds at most, in bytes, over the ranks that make it."""
        ...

    def denoise(
        self,
        request: Request,
        schedule: TimestepSchedule,
        cache: Any = None,
        callback: Callable[[int, int], object] | None = None,
        recorder: Any = None,
    ) -> Denoised:
        """Latents of one video, and how long the denoising took (text encoding not counted).

        `callback` is told the steps done and their number; `recorder` sees every block and every
        denoised prediction (see `calibration.recorder`), and excludes `cache`.
        """
        ...

    def decode(self, latents: Tensor, seed: int = 0) -> np.ndarray:
        """Frames uint8 [t h w c] of one video's latents; `seed` is that of its request."""
        ...

    def cached_speedup(
        self,
        request: Request,
        schedule: TimestepSchedule,
        policy: CachePolicy,
        memory: CacheMemoryOptions,
    ) -> float:
        """How many times faster `policy` makes the denoising, every step timed with it and without
        (see `cache.paired_steps`).
        """
        ...


def open_maker(options: SamplingOptions, context: WorkerContext) -> Maker:
    """The model that the options name, loaded. Raises CheckpointError, and what its family does."""
    make: Callable[[SamplingOptions, WorkerContext], Maker]
    with importing():  # only the family that is asked for
        if options.pipeline is not None:
            from osp_opt.pipelines.diffusers_maker import PipelineMaker

            make = PipelineMaker
        else:
            from osp_opt.pipelines.open_sora_plan import VideoMaker

            make = VideoMaker
    return make(options, context)
