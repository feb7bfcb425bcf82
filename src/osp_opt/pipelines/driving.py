"""The scheduler's stand-in for the time of one call: levels go in, every step is seen.

A copy of the pipeline's scheduler takes its place; behind the call the pipeline has its own again.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from osp_opt.pipelines.schedulers import Steering
from osp_opt.sampling.steps import correction_factors, two_step

__all__ = ["Drive", "StepSeen", "driving"]


@dataclass(frozen=True)
class StepSeen:
    """One step of a run.

    timestep: of the levels (1000 s for flow matching). denoised: x0 as the guided output has it,
    float32, in the layout of `latents`, which the step made.
    """

    index: int
    timestep: float
    denoised: Tensor
    latents: Tensor


@dataclass
class Drive:
    """What is done to one call.

    levels: timesteps in place of the scheduler's own (None: these). corrections: of each step (see
    `TimestepSchedule`): the step is given the output that belongs to the extrapolated prediction.
    on_levels is told when the levels are set, on_step of every step. With `result` no step is made
    and every one "makes" that. began: whether the call has taken its arguments.
    """

    levels: Sequence[float] | None = None
    corrections: Sequence[float] = ()
    on_levels: Callable[[Steering], None] | None = None
    on_step: Callable[[StepSeen], None] | None = None
    result: Tensor | None = None
    began: bool = field(default=False, init=False)


@contextmanager
def driving(pipe: Any, drive: Drive) -> Iterator[None]:
    """Calls of `pipe` inside are driven."""
    original = pipe.scheduler
    steering = Steering(copy.deepcopy(original))
    scheduler = steering.scheduler
    set_timesteps, step = scheduler.set_timesteps, scheduler.step
    signature = inspect.signature(step)
    index, mixes = [0], list[tuple[float, float]]()
    times, factors, before = list[float](), list[float](), list[Tensor]()

    @functools.wraps(set_timesteps)
    def our_set_timesteps(*args: Any, **kwargs: Any) -> None:
        drive.began = True
        set_timesteps(*args, **kwargs)
        if drive.levels is not None:
            steering.set_levels(drive.levels)
        index[0], mixes[:], times[:], before[:] = 0, steering.mixes(), steering.levels(), []
        if drive.corrections:
            sigmas = [*steering.scale.sigmas(times), 0.0]
            factors[:] = correction_factors(sigmas, drive.corrections)
        if drive.on_levels is not None:
            drive.on_levels(steering)

    @functools.wraps(step)
    def our_step(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        output, sample = given.arguments["model_output"], given.arguments["sample"]
        i = index[0]
        index[0] += 1
        if drive.result is not None:
            made = drive.result.to(sample.device)
            as_dict = given.arguments.get(
                "return_dict", signature.parameters["return_dict"].default
            )
            return DDIMSchedulerOutput(made, made) if as_dict else (made, made)
        denoised = None
        if drive.on_step is not None or factors:
            denoised = steering.denoised(mixes[i], output, sample)
        if factors and factors[i]:
            assert denoised is not None
            held = two_step(denoised, before[-1], factors[i])
            given.arguments["model_output"] = steering.output(mixes[i], held, sample).to(output)
        if factors:
            before[:] = [denoised]  # type: ignore[list-item]
        result = steering.step(step, i, *given.args, **given.kwargs)
        if drive.on_step is not None:
            assert denoised is not None
            latents = result[0] if isinstance(result, tuple) else result.prev_sample
            drive.on_step(StepSeen(i, times[i], denoised, latents))
        return result

    scheduler.set_timesteps, scheduler.step = our_set_timesteps, our_step
    pipe.scheduler = scheduler
    try:
        yield
    finally:
        pipe.scheduler = original
