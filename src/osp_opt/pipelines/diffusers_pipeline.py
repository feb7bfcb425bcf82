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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.hooks.hooks import HookRegistry, ModelHook
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

from osp_opt.base.errors import CheckpointError, OptionError, ScheduleError
from osp_opt.base.samplers import SamplerKind
from osp_opt.cache.hooks import CacheHandle, apply_cache, unregister
from osp_opt.cache.policy import CachePolicy
from osp_opt.model.checkpoint import model_fingerprint
from osp_opt.model.weights import names
from osp_opt.pipelines.blocks import (
    BlockWatch,
    Position,
    registered_blocks,
    transformers_of,
    watching,
)
from osp_opt.pipelines.digest import parameters_digest
from osp_opt.pipelines.driving import Drive, StepSeen, driving
from osp_opt.pipelines.experts import check_experts
from osp_opt.pipelines.files import described
from osp_opt.pipelines.requirements import Described, check_arguments, check_kind
from osp_opt.pipelines.schedulers import Steering
from osp_opt.sampling.schedule import TimestepSchedule

__all__ = ["DiffusersPipeline", "Made", "StepSeen", "open_pipeline"]

_SILENT, _PAIR = "osp_opt_silent", "osp_opt_pair"
_DECODING_STEPS = 2  # what any scheduler can make
Paired = Callable[[int, Callable[[], Any], Callable[[], Any]], Any]
"""Runs both calls of a step, without a cache and with it; returns what the first one made."""

_BAD_CALL = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError)
_REFUSALS = (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError)


@dataclass(frozen=True)
class Made:
    """One video's latents, in the pipeline's own layout, and the seconds of its steps."""

    latents: Tensor
    seconds: float


class _SeenEnough(BaseException):
    """Ends a call of the pipeline that has shown what was asked of it."""


def _nothing() -> None:
    """There is no queue to wait for."""


def pipeline_folder(place: str | Path, cache_dir: str | Path | None = None) -> Path:
    """A pipeline's local folder, downloaded where `place` is a hub id. Raises CheckpointError."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(DiffusionPipeline.download(str(place), cache_dir=cache_dir))
    except _REFUSALS as error:
        line = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{place}: no such folder, and the hub did not deliver it ({line:.300})"
        ) from error


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
    folder = pipeline_folder(place, cache_dir)
    if (found := described(folder)) is not None:
        check_kind(found)  # before gigabytes of weights are read
    try:
        with _without_bars():
            pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    except _REFUSALS as error:
        line = str(error).strip().split("\n")[0]
        if "low_cpu_mem_usage" in line:  # diffusers' way to say what is missing
            line = "it needs accelerate: pip install 'osp-opt[pipelines]'"
        raise CheckpointError(f"{place}: diffusers cannot load it ({line:.300})") from error
    _check_filled(place, pipe)
    return DiffusersPipeline(pipe.to(device), arguments, synchronize, folder)


@contextmanager
def _without_bars() -> Iterator[None]:
    """Progress bars of diffusers and transformers are off inside, and then as they were."""
    shown = [
        each for each in (diffusers_logging, transformers_logging) if each.is_progress_bar_enabled()
    ]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


def _check_filled(place: str | Path, pipe: Any) -> None:
    """Raise CheckpointError where weights that a component's config asks for are in no file."""
    for part, module in pipe.components.items():
        tensors = module.state_dict() if isinstance(module, nn.Module) else {}
        empty = [name for name, tensor in tensors.items() if tensor.is_meta]
        if empty:
            raise CheckpointError(
                f"{place}: {part}: no weights for {names(empty)}, which its config.json asks for; "
                "the two do not belong together"
            )


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
        self._synchronize = synchronize or _nothing
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
        seen: list[str] = []
        position = Position()

        def stop(*_: Any) -> None:
            raise _SeenEnough

        with self._watched(_Branches(seen), position):
            self._call(Drive(on_step=stop), "", 0, _DECODING_STEPS, "latent")
        return tuple(seen)

    def cache_bytes(self, policy: CachePolicy, dtype: torch.dtype | None = None) -> int:
        """What `policy` makes a video hold at most, in bytes; found by making a step.

        Raises PolicyError for a policy that does not fit.
        """

        def stop(*_: Any) -> None:
            raise _SeenEnough

        with ExitStack() as stack:
            transformers = list(self.transformers.values())
            handles = [apply_cache(each, policy, dtype=dtype) for each in transformers]
            for handle in handles:
                stack.callback(handle.remove)
            self._call(Drive(on_step=stop), "", 0, _DECODING_STEPS, "latent")
            # The noisier expert's step; a rule keeps what each of the two has stored last.
            return handles[0].bytes_needed() * (len(handles) if policy.rule else 1)

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
    ) -> Made:
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
                    registry = HookRegistry.check_if_exists_or_initialize(transformer)
                    hook = _Pair(handle, paired, position)
                    registry.register_hook(hook, _PAIR)
                    stack.callback(unregister, transformer, _PAIR)

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
        return Made(last[0].detach(), time.perf_counter() - began[0])

    def decode(self, latents: Tensor, seed: int = 0) -> np.ndarray:
        """Frames uint8 [t h w c] of one video's latents, by the pipeline's own last lines.

        The pipeline is called with its transformers silenced and the latents as what its last
        step leaves. Some autoencoders (LTX's) take noise: that of the video's `seed` is its own.
        """
        with ExitStack() as stack:
            for transformer in self.transformers.values():
                registry = HookRegistry.check_if_exists_or_initialize(transformer)
                registry.register_hook(_Silence(), _SILENT)  # type: ignore[no-untyped-call]
                stack.callback(unregister, transformer, _SILENT)
            made = self._call(Drive(result=latents), "", seed, _DECODING_STEPS, "np")
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
            line = str(error).strip().split("\n")[0]
            raise OptionError(f"{self.name} refuses its arguments: {line:.300}") from error
        finally:
            if bar is None:
                del self.pipe._progress_bar_config
            else:
                self.pipe._progress_bar_config = bar

    @contextmanager
    def _watched(self, watch: BlockWatch, position: Position) -> Iterator[None]:
        with watching(list(self.transformers.values()), watch, position):
            yield

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


class _Branches:
    """Sees which guidance branches a step has."""

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def begin(self, step: int, branch: str, states: Tensor, num_blocks: int) -> None:
        self._seen.append(branch)

    def cross(self, boundary: int, states: Tensor) -> None: ...

    def end(self) -> None: ...


class _Silence(ModelHook):
    """A transformer that does nothing: its output is zeros of its input's shape."""

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        zeros = torch.zeros_like(args[0] if args else kwargs["hidden_states"])
        return (zeros,)


class _Pair(ModelHook):
    """On a transformer with a cache: `paired` runs each of its calls without and with it."""

    fn_ref: Any  # set by diffusers when the hook is registered

    def __init__(self, handle: CacheHandle, paired: Paired, position: Position) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._handle = handle
        self._paired = paired
        self._position = position

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(self.fn_ref.original_forward, *args, **kwargs)

        def plain() -> Any:
            with self._handle.bypassed():
                return call()

        return self._paired(self._position.step, plain, call)
