"""The ten sample methods of Open-Sora-Plan v1.2 on diffusers' scheduler classes.

The constructor arguments are the reference's: defaults, except that DDIM and DDPM do not clip.
(Heun's and KDPM2's default betas are not those the model was trained with; the reference uses
them so, and so do we.) Four classes are extended where diffusers lacks something the reference or
coupled noise needs: timesteps of one's own, or noise that comes from outside.

Timesteps and sigmas stay on the CPU, so no step waits for a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, cast, runtime_checkable

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler, DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_deis_multistep import DEISMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_dpmsolver_singlestep import DPMSolverSinglestepScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import (
    KDPM2AncestralDiscreteScheduler,
)
from diffusers.schedulers.scheduling_pndm import PNDMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from osp_opt.base.errors import OptionError, ScheduleError
from osp_opt.base.samplers import FOLLOW_TIMESTEPS, SAMPLER_KINDS
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of
from osp_opt.sampling.steps import ancestral_step, ode_step, vp_scale


class Scheduler(Protocol):
    """What all diffusers schedulers have in common, as far as it is used here."""

    timesteps: Tensor
    init_noise_sigma: Any
    config: Any

    def scale_model_input(self, sample: Tensor, timestep: Any) -> Tensor: ...
    def set_timesteps(self, *args: Any, **kwargs: Any) -> None: ...
    def step(self, *args: Any, **kwargs: Any) -> Any: ...


@runtime_checkable
class StochasticScheduler(Protocol):
    """A scheduler whose `step` takes its unit normal noise as `variance_noise`."""

    def noise_levels(self, index: int) -> tuple[float, float] | None:
        """Noise levels that call `index` of `step` goes between; None when it takes no noise."""
        ...


def _result(x: Tensor, denoised: Tensor, return_dict: bool) -> Any:
    if not return_dict:
        return x, denoised
    return DDIMSchedulerOutput(prev_sample=x, pred_original_sample=denoised)


class EulerAncestral(EulerAncestralDiscreteScheduler):
    """Euler ancestral with timesteps of one's own (any floats) and noise from outside."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device = "cpu",
        timesteps: Sequence[float] | None = None,
    ) -> None:
        super().set_timesteps(num_inference_steps or len(timesteps or ()), device=device)
        if timesteps is not None:
            own = torch.tensor(timesteps, dtype=torch.float64)
            table = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt().double()
            low = own.floor().clamp(max=len(table) - 2).long()
            sigmas = torch.lerp(table[low], table[low + 1], own - low)
            self.sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]).float()
            self.timesteps = own.to(device)

    def noise_levels(self, index: int) -> tuple[float, float]:
        return float(self.sigmas[index]), float(self.sigmas[index + 1])

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        variance_noise: Tensor | None = None,
    ) -> Any:
        if variance_noise is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        state: Any = self  # diffusers declares its counters as None
        if state.step_index is None:
            state._init_step_index(timestep)
        a, b = self.noise_levels(state.step_index)
        denoised = sample - a * model_output
        x = ancestral_step(sample, denoised, a, b, variance_noise)
        state._step_index += 1
        return _result(x, denoised, return_dict)


class DDPM(DDPMScheduler):
    """DDPM with noise from outside: the Euler ancestral step on whole timesteps."""

    def noise_levels(self, index: int) -> tuple[float, float] | None:
        levels = _vp_levels(self, int(self.timesteps[index]))
        return levels if levels[1] > 0 else None

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        variance_noise: Tensor | None = None,
    ) -> Any:
        if variance_noise is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        a, b = _vp_levels(self, int(timestep))
        x = sample * vp_scale(a)
        denoised = x - a * model_output
        x = ancestral_step(x, denoised, a, b, variance_noise) / vp_scale(b)
        return _result(x, denoised, return_dict)


class DDIM(DDIMScheduler):
    """DDIM with whole timesteps of one's own; diffusers' steps back by a fixed stride only."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device = "cpu",
        timesteps: Sequence[int] | None = None,
    ) -> None:
        super().set_timesteps(num_inference_steps or len(timesteps or ()), device=device)
        self.custom_timesteps = timesteps is not None
        if timesteps is not None:
            self.timesteps = torch.tensor(timesteps, dtype=torch.int64, device=device)

    def previous_timestep(self, timestep: int) -> int:
        """The timestep after `timestep` in sampling order; -1 at the end."""
        own = self.timesteps.tolist()
        return int([*own, -1][own.index(timestep) + 1])

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        if not self.custom_timesteps:
            return super().step(
                model_output,
                timestep,
                sample,
                eta,
                use_clipped_model_output,
                generator,
                variance_noise,
                return_dict,
            )
        if eta or use_clipped_model_output:
            raise OptionError("DDIM on timesteps of one's own makes plain steps: eta must be 0")
        a, b = _vp_levels(self, int(timestep))
        x = sample * vp_scale(a)
        denoised = x - a * model_output
        x = ode_step(x, denoised, a, b) / vp_scale(b)
        return _result(x, denoised, return_dict)


class KDPM2Ancestral(KDPM2AncestralDiscreteScheduler):
    """DPM2 ancestral with noise from outside; only every second call (the corrector) takes some."""

    def noise_levels(self, index: int) -> tuple[float, float] | None:
        if index % 2 == 0:
            return None
        return float(self.sigmas[index - 1]), float(self.sigmas[index])

    def step(
        self,
        model_output: Any,
        timestep: float | Tensor,
        sample: Any,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
        variance_noise: Tensor | None = None,
    ) -> Any:
        if variance_noise is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        state: Any = self  # diffusers declares its counters as None
        before = state.step_index - 1  # where the pair of calls began
        middle = float(self.sigmas_interpol[before])
        down, up = float(self.sigmas_down[before]), float(self.sigmas_up[before])
        x = state.sample + (down - float(self.sigmas[before])) * model_output + up * variance_noise
        state.sample = None
        state._step_index += 1
        return _result(x, sample - middle * model_output, return_dict)


def _vp_levels(scheduler: Any, timestep: int) -> tuple[float, float]:
    """sigma of a whole timestep and of the one that follows it in sampling (0 after the last)."""
    following = int(scheduler.previous_timestep(timestep))
    abar = scheduler.alphas_cumprod[timestep].item()
    abar_next = scheduler.alphas_cumprod[following].item() if following >= 0 else 1.0
    return ((1 - abar) / abar) ** 0.5, ((1 - abar_next) / abar_next) ** 0.5


_CLASSES: Mapping[str, type[Any]] = MappingProxyType(
    {
        "EulerAncestralDiscrete": EulerAncestral,
        "EulerDiscrete": EulerDiscreteScheduler,
        "DDIM": DDIM,
        "DDPM": DDPM,
        "DPMSolverMultistep": DPMSolverMultistepScheduler,
        "DPMSolverSinglestep": DPMSolverSinglestepScheduler,
        "PNDM": PNDMScheduler,
        "HeunDiscrete": HeunDiscreteScheduler,
        "DEISMultistep": DEISMultistepScheduler,
        "KDPM2AncestralDiscrete": KDPM2Ancestral,
    }
)
_UNCLIPPED = ("DDIM", "DDPM")  # made with `clip_sample` off, all others as they are
SAMPLERS: tuple[str, ...] = tuple(SAMPLER_KINDS)
"""Values of `--sampler` (the reference's `--sample_method`); the first is the default."""


def make_scheduler(name: str) -> Scheduler:
    """A fresh scheduler of sample method `name`. Raises OptionError for an unknown name."""
    if name not in _CLASSES:
        raise OptionError(f"sampler {name!r} is unknown; use one of {', '.join(SAMPLERS)}")
    arguments = {"clip_sample": False} if name in _UNCLIPPED else {}
    return cast(Scheduler, _CLASSES[name](**arguments))


def sampler_name(scheduler: object) -> str:
    """The sample method of a diffusers scheduler. Raises OptionError when it is none of the ten."""
    for name, kind in _CLASSES.items():
        # the class used here, or the diffusers class under it
        if isinstance(scheduler, SchedulerMixin) and issubclass(kind, type(scheduler)):
            return name
    known = ", ".join(SAMPLERS)
    raise OptionError(f"scheduler {type(scheduler).__name__} is none of {known}")


def adopt_scheduler(scheduler: Any) -> Scheduler:
    """A fresh scheduler like `scheduler`, of the class used here.

    Fresh, because schedulers keep state between steps: two runs must not share one.
    """
    kind = _CLASSES[sampler_name(scheduler)]
    found = scheduler.config.get("prediction_type", "epsilon")
    if found != "epsilon":
        raise OptionError(
            f"scheduler {type(scheduler).__name__} has prediction_type {found!r}; "
            "Open-Sora-Plan v1.2 predicts the noise, 'epsilon'"
        )
    return cast(Scheduler, kind.from_config(scheduler.config))


def is_stock(scheduler: Scheduler, name: str) -> bool:
    """Whether the scheduler is method `name` with the reference's arguments."""
    return sampler_name(scheduler) == name and all(
        scheduler.config[key] == value
        for key, value in make_scheduler(name).config.items()
        if not key.startswith("_")
    )


def set_schedule(scheduler: Scheduler, schedule: TimestepSchedule) -> None:
    """Make `scheduler` follow `schedule`; its own spacing when that is the default one.

    Raises ScheduleError when the method takes no timesteps of one's own, or only whole ones and
    two of the schedule's round to one; and when the schedule has corrections and the method steps
    of second order.
    """
    name = sampler_name(scheduler)
    if schedule.corrections and not SAMPLER_KINDS[name].takes_corrections:
        raise ScheduleError(
            f"sampler {name} takes no corrected steps: its own are of second order; use one of "
            f"{', '.join(n for n, kind in SAMPLER_KINDS.items() if kind.takes_corrections)}"
        )
    if schedule.is_default:
        scheduler.set_timesteps(len(schedule), device="cpu")
        return
    kind = SAMPLER_KINDS[name].timesteps
    if kind is None:
        raise ScheduleError(
            f"sampler {name} cannot follow a schedule; use one of {', '.join(FOLLOW_TIMESTEPS)}"
        )
    timesteps: list[float] = list(schedule.timesteps)
    if kind == "whole":
        timesteps = [round(t) for t in timesteps]
        for i in range(1, len(timesteps)):
            if timesteps[i] == timesteps[i - 1]:
                raise ScheduleError(
                    f"sampler {name} takes whole timesteps, and {schedule.timesteps[i - 1]} and "
                    f"{schedule.timesteps[i]} both round to {timesteps[i]}; use EulerAncestral"
                    "Discrete, EulerDiscrete or HeunDiscrete, or fewer steps"
                )
    scheduler.set_timesteps(timesteps=timesteps, device="cpu")


def call_timesteps(sampler: Any, schedule: TimestepSchedule) -> tuple[float, ...]:
    """Timestep of every network evaluation of a sampler (its name, or a scheduler).

    Those of second order evaluate the network twice for each of the schedule but the last. Raises
    ScheduleError for a schedule that the sampler cannot follow.
    """
    scheduler = make_scheduler(sampler) if isinstance(sampler, str) else adopt_scheduler(sampler)
    set_schedule(scheduler, schedule)
    return tuple(float(t) for t in scheduler.timesteps)


def first_sigma(scheduler: Scheduler) -> float | None:
    """The level whose coupled noise starts a run: the first, for samplers that draw noise.

    Deterministic samplers only scale their initial noise, so they take that of the largest level
    (None) whatever timestep they start from: runs of different length then start alike.
    """
    if not isinstance(scheduler, StochasticScheduler):
        return None
    start = float(scheduler.init_noise_sigma)
    return start if start > 1.0 else sigma_of(float(scheduler.timesteps[0]))
