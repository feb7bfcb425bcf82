"""A diffusers text-to-video pipeline as it is: its own call makes every video.

The call is intercepted in three places, each only for the time of one call. A copy of the scheduler
stands in for the pipeline's own: its `set_timesteps` takes our levels, its `step` shows the guided
output of the network. The registered blocks of the transformers carry hooks where something watches
them or reuses them. Behind the call the pipeline is as it was.
"""

from __future__ import annotations

import copy
import functools
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osp_opt.base.errors import OptionError, ScheduleError, first_line
from osp_opt.base.samplers import SamplerKind
from osp_opt.cache.hooks import apply_cache
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.registries import attached, registered_blocks
from osp_opt.model.checkpoint import model_fingerprint
from osp_opt.pipelines.blocks import (
    BlockWatch,
    Paired,
    PairHook,
    Position,
    SilentHook,
    transformers_of,
    watching,
)
from osp_opt.pipelines.digest import parameters_digest
from osp_opt.pipelines.driving import Drive, StepSeen, driving
from osp_opt.pipelines.experts import check_experts
from osp_opt.pipelines.maker import Denoised
from osp_opt.pipelines.opening import load_from_diffusers
from osp_opt.pipelines.requirements import Described, check_arguments, check_kind
from osp_opt.pipelines.schedulers import Steering
from osp_opt.sampling.schedule import TimestepSchedule

__all__ = ["DiffusersPipeline", "StepSeen", "open_pipeline"]

_FEW_STEPS = 2  # what any scheduler can make
_BAD_CALL = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)


class _Branches(list[str]):
    """Sees which guidance branches a step has: a `BlockWatch`."""

    def begin(self, step: int, branch: str, states: Tensor, num_blocks: int) -> None:
        self.append(branch)

    def cross(self, boundary: int, states: Tensor) -> None: ...

    def end(self) -> None: ...


class _SeenEnough(BaseException):
    """Ends a call of the pipeline that has shown what was asked of it."""


def open_pipeline(
    place: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    arguments: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    synchronize: Callable[[], None] | None = None,
) -> DiffusersPipeline:
    """Open a diffusers pipeline: a local folder with model_index.json, or a hub id.

    `arguments` go into every call of it (height, num_frames, guidance_scale, ...); `synchronize` is
    as of DiffusersPipeline. Raises CheckpointError for what is no text-to-video pipeline or lacks a
    part, ScheduleError for a scheduler that cannot be steered, OptionError for an argument that its
    call does not take.
    """
    pipe, folder = load_from_diffusers(place, dtype, cache_dir)
    return DiffusersPipeline(pipe.to(device), arguments, synchronize, folder)


class DiffusersPipeline:
    """Makes videos with a pipeline, at levels of one's own, watched or with blocks reused.

    Args:
        pipe: a diffusers text-to-video pipeline.
        arguments: for every call of it.
        synchronize: waits until the device has finished, so that times are right.
        folder: whose files it was loaded from, if it is what they say.

    Raises as `open_pipeline`.
    """

    def __init__(
        self,
        pipe: Any,
        arguments: Mapping[str, Any] | None = None,
        synchronize: Callable[[], None] | None = None,
        folder: Path | None = None,
    ) -> None:
        found = Described.of(pipe)
        check_kind(found)
        self.pipe = pipe
        self.transformers = transformers_of(pipe)
        self.arguments = dict(arguments or {})
        check_arguments(found, self.arguments)
        self._parameters = found.parameters
        self.steering = Steering(copy.deepcopy(pipe.scheduler))
        self._synchronize = synchronize or (lambda: None)
        self._folder = folder
        self._own: dict[int, tuple[float, ...]] = {}

    @property
    def name(self) -> str:
        """The pipeline's class."""
        return type(self.pipe).__name__

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) by which results know it: of its folder's files, else of what is loaded."""
        if self._folder is None:
            configs = (self.pipe.config, self.pipe.scheduler.config)
            return parameters_digest(self.pipe.components, *configs)
        return model_fingerprint(self._folder)

    def called_with(
        self, arguments: Mapping[str, Any], synchronize: Callable[[], None] | None
    ) -> DiffusersPipeline:
        """The same loaded pipeline, called otherwise. Raises OptionError as the constructor."""
        return DiffusersPipeline(self.pipe, arguments, synchronize, self._folder)

    @functools.cached_property
    def num_blocks(self) -> int:
        """Registered blocks, of each transformer."""
        return len(registered_blocks(next(iter(self.transformers.values()))))

    @property
    def kind(self) -> SamplerKind:
        """What its scheduler is to a search of steps."""
        steering = self.steering
        return SamplerKind(
            "whole" if steering.whole else "float",
            ancestral=steering.ancestral,
            order=steering.order,
        )

    @property
    def guidance_scale(self) -> float:
        """w of ``u + w (c - u)``, where a step has two branches."""
        name = "true_cfg_scale" if self.argument("true_cfg_scale") is not None else "guidance_scale"
        return float(self.argument(name) or 1.0)

    def schedule(self, steps: int) -> TimestepSchedule:
        """Its scheduler's own schedule of so many steps, which every other has to beat."""
        scale = self.steering.scale
        return TimestepSchedule(self.own_levels(steps), is_default=True, scale=scale)

    def argument(self, name: str) -> Any:
        """What its call gets for `name`: what was given, else its own default, else None."""
        if name in self.arguments:
            return self.arguments[name]
        found = self._parameters.get(name)
        return None if found is None or found.default is inspect.Parameter.empty else found.default

    def own_levels(self, steps: int) -> tuple[float, ...]:
        """The timesteps that its scheduler takes for so many steps; 1000 s for flow matching.

        The pipeline is called and stopped as soon as it has set them. Raises OptionError, as every
        call does, where it refuses its arguments.
        """
        if steps not in self._own:
            found: list[tuple[float, ...]] = []

            def stop(steering: Steering) -> None:
                found.append(steering.levels())
                raise _SeenEnough

            self._call(Drive(on_levels=stop), "", 0, steps, "latent")
            self._own[steps] = found[0]
        return self._own[steps]

    @functools.cached_property
    def calls(self) -> tuple[str, ...]:
        """The guidance branches of a step's calls of the transformer, in order: "positive" and
        "negative", or "both" at once; found by making one.
        """
        seen = _Branches()
        with self._watched(seen, Position()):
            self._make_a_step()
        return tuple(seen)

    def cache_bytes(self, policy: CachePolicy, dtype: torch.dtype | None = None) -> int:
        """What `policy` makes a video hold at most, in bytes; found by making a step.

        Raises PolicyError for a policy that does not fit.
        """

        with ExitStack() as stack:
            transformers = list(self.transformers.values())
            handles = [apply_cache(each, policy, dtype=dtype) for each in transformers]
            for handle in handles:
                stack.callback(handle.remove)
            self._make_a_step()
            # The noisier expert's step; a rule keeps what each of the two has stored last.
            return handles[0].bytes_needed() * (len(handles) if policy.rule else 1)

    def _make_a_step(self) -> None:
        """The first of a video, and no more."""

        def stop(*_: Any) -> None:
            raise _SeenEnough

        self._call(Drive(on_step=stop), "", 0, _FEW_STEPS, "latent")

    def branches(self) -> int:
        """Guidance branches of a step; the first to ask makes one."""
        return 2 if "both" in self.calls or len(self.calls) == 2 else 1

    def denoise(
        self,
        prompt: str,
        seed: int,
        steps: int | None = None,
        *,
        levels: Sequence[float] | None = None,
        corrections: Sequence[float] = (),
        cache: CachePolicy | None = None,
        cache_dtype: torch.dtype | None = None,
        offload: bool = False,
        paired: Paired | None = None,
        watch: BlockWatch | None = None,
        on_step: Callable[[StepSeen], None] | None = None,
    ) -> Denoised:
        """The latents of one video: in so many `steps` of its own, or at `levels` (timesteps).

        The noise is that of a CPU generator with `seed`, as everybody would give it. `corrections`
        are those of a `TimestepSchedule`, for schedulers of first order. `cache` is applied to
        every transformer, with `paired` only beside the plain call, which then makes the video;
        `watch` sees their blocks, `on_step` every step.

        Raises ScheduleError for levels that do not descend or are none, PolicyError for a cache
        that does not fit, OptionError for call arguments that the pipeline refuses.
        """
        if (steps is None) == (levels is None):
            raise OptionError("give a number of steps, or levels")
        if levels is not None:
            self._check_levels(levels, corrections)
        count = len(levels) if levels is not None else int(steps or 0)
        position, began = Position(), [0.0]
        last: list[Tensor] = []

        def begin(steering: Steering) -> None:
            if cache is not None:
                check_experts(cache, steering.levels(), self.boundary)
            self._synchronize()
            began[0] = time.perf_counter()

        with ExitStack() as stack:
            if watch is not None:
                stack.enter_context(self._watched(watch, position))
            handles = []
            for transformer in self.transformers.values() if cache is not None else ():
                assert cache is not None
                handle = apply_cache(
                    transformer, cache, num_steps=count, dtype=cache_dtype, offload=offload
                )
                stack.callback(handle.remove)
                handles.append(handle)
                if paired is not None:
                    hook = PairHook(handle, paired, position)
                    stack.enter_context(attached(transformer, hook, "osp_opt_pair"))

            def seen(step: StepSeen) -> None:
                last[:] = [step.latents]
                for handle in handles:
                    handle.on_step_end(self.pipe, step.index, step.timestep, {})
                position.step = step.index + 1
                if on_step is not None:
                    on_step(step)

            drive = Drive(levels, corrections, begin, seen)
            self._call(drive, prompt, seed, count, "latent")
        self._synchronize()
        return Denoised(last[0].detach(), time.perf_counter() - began[0])

    def decode(self, latents: Tensor, seed: int = 0) -> np.ndarray:
        """Frames uint8 [t h w c] of one video's latents, by the pipeline's own last lines.

        The pipeline is called with its transformers silenced and the latents as what its last
        step leaves. Some autoencoders (LTX's) take noise: that of the video's `seed` is its own.
        """
        with ExitStack() as stack:
            for transformer in self.transformers.values():
                stack.enter_context(attached(transformer, SilentHook(), "osp_opt_silent"))  # type: ignore[no-untyped-call]
            made = self._call(Drive(result=latents), "", seed, _FEW_STEPS, "np")
        frames = np.asarray(made.frames if hasattr(made, "frames") else made[0])[0]
        return (np.clip(frames, 0.0, 1.0) * 255.0).astype(np.uint8)

    def _call(self, drive: Drive, prompt: str, seed: int, steps: int, output_type: str) -> Any:
        """Call the pipeline, driven; None when it was stopped early. Raises OptionError for
        refusals.
        """
        given = {**self.arguments, "prompt": prompt, "num_inference_steps": steps}
        given |= {"generator": torch.Generator("cpu").manual_seed(seed), "output_type": output_type}
        bar = getattr(self.pipe, "_progress_bar_config", None)
        self.pipe.set_progress_bar_config(disable=True)
        try:
            with driving(self.pipe, drive):
                return self.pipe(**given)
        except _SeenEnough:
            self.pipe.maybe_free_model_hooks()
            return None
        except _BAD_CALL as error:
            if drive.began:
                raise
            said = first_line(error)
            raise OptionError(f"{self.name} refuses its arguments: {said:.300}") from error
        finally:
            if bar is None:
                del self.pipe._progress_bar_config
            else:
                self.pipe._progress_bar_config = bar

    def _watched(self, watch: BlockWatch, position: Position) -> AbstractContextManager[None]:
        return watching(list(self.transformers.values()), watch, position)

    def check(self, levels: Sequence[float], corrections: Sequence[float] = ()) -> None:
        """Raise ScheduleError for levels, or corrections of steps, that no call can follow."""
        self._check_levels(levels, corrections)
        self.steering.differ(self.own_levels(len(levels)), levels)

    def _check_levels(self, levels: Sequence[float], corrections: Sequence[float]) -> None:
        self.steering.scale.check(levels)
        if any(corrections) and not self.kind.takes_corrections:
            raise ScheduleError(
                f"{self.steering.name} takes no corrected steps: its own are of second order"
            )

    @property
    def boundary(self) -> float | None:
        """The timestep from which on, downwards, a second transformer makes the steps."""
        ratio = self.pipe.config.get("boundary_ratio")
        return None if len(self.transformers) == 1 or ratio is None else 1000.0 * float(ratio)
