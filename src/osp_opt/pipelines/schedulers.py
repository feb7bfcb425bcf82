"""What is known of other people's schedulers: which can follow levels, and what a step shows.

A pipeline calls `set_timesteps` once and `step` once per step. Between the two a scheduler of
diffusers keeps all it knows in a few attributes (`timesteps`, `sigmas`), so levels go in there,
*after* the scheduler made its own: whatever shift it applies to levels that it is given, it does
not apply to these. Where the levels asked for are the scheduler's own, nothing is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddim_cogvideox import CogVideoXDDIMScheduler
from diffusers.schedulers.scheduling_dpm_cogvideox import CogVideoXDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from torch import Tensor

from osp_opt.base.errors import ScheduleError
from osp_opt.pipelines.requirements import check_scheduler, draws_noise, is_flow
from osp_opt.sampling.levels import same_timesteps
from osp_opt.sampling.noise_scale import FLOW, NoiseScale

__all__ = ["Steering"]

_MULTISTEP = (UniPCMultistepScheduler, DPMSolverMultistepScheduler)
_STRIDE = (DDIMScheduler, CogVideoXDDIMScheduler, CogVideoXDPMScheduler)


@dataclass
class Steering:
    """How one scheduler is steered and read. Raises ScheduleError for one that cannot be.

    scheduler: a copy of the pipeline's own, which may be written into.
    follows: whether it was given levels that are not its own.
    """

    scheduler: Any
    follows: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        check_scheduler(self.names, self.scheduler.config)

    @property
    def name(self) -> str:
        """The scheduler's class."""
        return type(self.scheduler).__name__

    @property
    def names(self) -> list[str]:
        """Of its class and of those that it is made from."""
        return [kind.__name__ for kind in type(self.scheduler).__mro__]

    @property
    def is_flow(self) -> bool:
        """Whether it thinks in the s of flow matching, x_s = (1 - s) x0 + s eps."""
        return is_flow(self.names, self.scheduler.config)

    @property
    def is_reversed(self) -> bool:
        """Whether its sigmas are 1 - s and rise, as Mochi's do."""
        return bool(self.scheduler.config.get("invert_sigmas"))

    @property
    def shift(self) -> float | None:
        """By how much it shifts flow-matching levels that it is given; None where that depends on
        the video, and for others.
        """
        config = self.scheduler.config
        if not self.is_flow or config.get("use_dynamic_shifting") or config.get("shift_terminal"):
            return None
        return float(config.get("flow_shift") or config.get("shift") or 1.0)

    @property
    def prediction(self) -> str:
        """What the network's output is."""
        return str(self.scheduler.config.get("prediction_type", "flow_prediction"))

    @property
    def order(self) -> int:
        """Of its steps: what an Euler step costs is exact for 1 only."""
        return int(self.scheduler.config.get("solver_order", 1))

    @property
    def ancestral(self) -> bool:
        """Whether it draws fresh noise on the way, so that runs of different lengths differ."""
        return draws_noise(self.names, self.scheduler.config)

    @property
    def whole(self) -> bool:
        """Whether it can take whole timesteps only."""
        return not self.is_flow

    @cached_property
    def scale(self) -> NoiseScale:
        """From its timesteps (1000 s for flow matching) to VE levels."""
        if self.is_flow:
            return FLOW
        return NoiseScale.of_alphas(self.scheduler.alphas_cumprod.double().numpy())

    def levels(self) -> tuple[float, ...]:
        """The timesteps that are set now, the noisiest first; 1000 s for flow matching.

        Of the scheduler's own numbers, so that they are exact: 1000 s of a float32 s.
        """
        scheduler = self.scheduler
        if not self.is_flow:
            return tuple(float(t) for t in scheduler.timesteps)
        s = scheduler.sigmas[: len(scheduler.timesteps)].double().cpu()
        return tuple(1000.0 * float(x) for x in (1.0 - s if self.is_reversed else s))

    def set_levels(self, timesteps: Sequence[float]) -> None:
        """Follow these, of which the scheduler has just set as many of its own.

        Raises as `differ`.
        """
        if not self.differ(self.levels(), timesteps):
            return
        self.follows = True
        scheduler = self.scheduler
        old: Tensor = scheduler.timesteps
        if self.is_flow:
            s = torch.tensor(timesteps, dtype=torch.float64) / 1000.0
            own_s = (1.0 - s if self.is_reversed else s).float().to(scheduler.sigmas.device)
            scheduler.sigmas = torch.cat([own_s, scheduler.sigmas[-1:]])
            times = scheduler.sigmas[:-1] * 1000.0
            if not old.is_floating_point():  # as UniPC cuts them; not by a rounding error of s
                times = (times.double() + 1e-3).floor()
            scheduler.timesteps = times.to(old)
            return
        whole = _whole(timesteps, self.name)
        scheduler.timesteps = torch.tensor(whole).to(old)
        if isinstance(scheduler, _MULTISTEP):
            assert self.scale.table is not None
            sigmas = torch.from_numpy(np.append(self.scale.sigmas(whole), 0.0)).float()
            sigmas[-1] = scheduler.sigmas[-1]
            scheduler.sigmas = sigmas.to(scheduler.sigmas.device)

    def differ(self, own: Sequence[float], timesteps: Sequence[float]) -> bool:
        """Whether `timesteps` are others than its `own` levels of a run.

        Raises ScheduleError for a number of steps that it did not set, and for whole timesteps
        that fall together.
        """
        if len(own) != len(timesteps):
            raise ScheduleError(
                f"{self.name} set {len(own)} levels where {len(timesteps)} were asked for: it "
                "cannot follow a schedule here"
            )
        if same_timesteps(own, timesteps):
            return False
        if self.whole:
            _whole(timesteps, self.name)
        return True

    def mixes(self) -> list[tuple[float, float]]:
        """(a, b) of every step that is set: its sample is a x0 + b eps."""
        scheduler = self.scheduler
        if self.is_flow:
            s = scheduler.sigmas[:-1].double().cpu()
            s = 1.0 - s if self.is_reversed else s
            pairs = torch.stack([1.0 - s, s], dim=1)
        elif isinstance(scheduler, _MULTISTEP):
            sigma = scheduler.sigmas[:-1].double().cpu()
            pairs = torch.stack([torch.ones_like(sigma), sigma], 1) / (1 + sigma**2).sqrt()[:, None]
        else:
            abar = scheduler.alphas_cumprod.double().cpu()[scheduler.timesteps.long().cpu()]
            pairs = torch.stack([abar, 1.0 - abar], dim=1).sqrt()
        return [(float(a), float(b)) for a, b in pairs]

    def denoised(self, mix: tuple[float, float], output: Tensor, sample: Tensor) -> Tensor:
        """x0 as the network's `output` has it for a `sample` of that mix, in float32.

        flow: x - s v; epsilon: (x - b eps) / a; v: a x - b v (Salimans and Ho 2022, arXiv
        2202.00512, section 4), with the sample x = a x0 + b eps.
        """
        a, b = mix
        x, out = sample.float(), output.float()
        if self.prediction == "sample":
            return out
        if self.prediction == "flow_prediction":
            return x + b * out if self.is_reversed else x - b * out
        if self.prediction == "v_prediction":
            return a * x - b * out
        return (x - b * out) / a

    def output(self, mix: tuple[float, float], denoised: Tensor, sample: Tensor) -> Tensor:
        """The network's output that has this `denoised` for a `sample` of that mix: the inverse of
        `denoised`.
        """
        a, b = mix
        x = sample.float()
        if self.prediction == "sample":
            return denoised
        if self.prediction == "flow_prediction":
            return (denoised - x) / b if self.is_reversed else (x - denoised) / b
        if self.prediction == "v_prediction":
            return (a * x - denoised) / b
        return (x - a * denoised) / b

    def step(self, original: Any, index: int, *args: Any, **kwargs: Any) -> Any:
        """Make step `index` by the scheduler's own `original` method, to the level that follows.

        DDIM's go back by `num_train_timesteps // num_inference_steps`, whatever follows: where
        that is not the next level, these two are set for the one step so that it is.
        """
        scheduler = self.scheduler
        if not (self.follows and isinstance(scheduler, _STRIDE)):
            return original(*args, **kwargs)
        trained, steps = scheduler.config.num_train_timesteps, scheduler.num_inference_steps
        here = int(scheduler.timesteps[index])
        last = index + 1 == len(scheduler.timesteps)
        following = -1 if last else int(scheduler.timesteps[index + 1])
        planned = here - trained // steps
        if planned == following or (last and planned < 0):
            return original(*args, **kwargs)
        scheduler.register_to_config(num_train_timesteps=here - following)
        scheduler.num_inference_steps = 1
        try:
            return original(*args, **kwargs)
        finally:
            scheduler.register_to_config(num_train_timesteps=trained)
            scheduler.num_inference_steps = steps


def _whole(timesteps: Sequence[float], name: str) -> list[int]:
    whole = [round(t) for t in timesteps]
    for before, after, t in zip(whole, whole[1:], timesteps[1:], strict=False):
        if before == after:
            raise ScheduleError(
                f"{name} takes whole timesteps, and {t} falls on the one before; use fewer steps"
            )
    return whole
