"""A schedule as timesteps and noise levels, for pipelines and schedulers of others.

A variance-preserving model (Open-Sora-Plan, and what DDIM or Euler schedulers sample) has the
levels of `sampling.schedule`: sigma = sqrt((1 - abar) / abar). A flow-matching model has sigma =
t / 1000 on the line from data to noise; its schedulers shift what they are given,
sigma' = s sigma / (1 + (s - 1) sigma), so they are given levels that end where the schedule is.
"""

from __future__ import annotations

from osp_opt.base.errors import ScheduleError
from osp_opt.base.samplers import SAMPLER_KINDS
from osp_opt.sampling.schedule import NUM_TRAIN_TIMESTEPS, TimestepSchedule

__all__ = ["comfyui_sigmas", "diffusers_sigmas", "diffusers_timesteps", "unshifted"]

_DIGITS = 7  # what float32, in which schedulers compute, can tell apart


def unshifted(sigma: float, shift: float) -> float:
    """The level that a flow-matching scheduler with `shift` moves to `sigma`, both in [0, 1]."""
    return sigma / (shift - (shift - 1.0) * sigma)


def diffusers_timesteps(
    schedule: TimestepSchedule, sampler: str | None = None, *, whole: bool = False
) -> list[float] | list[int]:
    """``timesteps=`` of a diffusers pipeline; whole ones where `sampler` takes no others, or asked.

    Raises ScheduleError where two round to one.
    """
    if not whole and (sampler is None or SAMPLER_KINDS[sampler].timesteps != "whole"):
        return [_rounded(t) for t in schedule.timesteps]
    rounded = [round(t) for t in schedule.timesteps]
    if len(set(rounded)) < len(rounded):
        raise ScheduleError(
            f"{sampler or 'its scheduler'} takes whole timesteps, and two of this schedule's round "
            "to one; use fewer steps, or a sampler that takes any"
        )
    return rounded


def diffusers_sigmas(schedule: TimestepSchedule, shift: float | None = None) -> list[float]:
    """``sigmas=`` of a diffusers pipeline or scheduler.

    Without `shift` those of a variance-preserving model, with the final 0 that its Euler
    schedulers expect. With it those of a flow-matching model whose scheduler shifts by so much (1:
    not at all); its schedulers add the final 0 themselves.
    """
    if shift is None:
        return [_rounded(sigma) for sigma in schedule.sigmas.tolist()]
    return [_rounded(unshifted(sigma, shift)) for sigma in _flow_levels(schedule)]


def comfyui_sigmas(schedule: TimestepSchedule, flow: bool = False) -> list[float]:
    """SIGMAS of ComfyUI's custom sampling, final 0 included; it does not shift what it is given."""
    levels = _flow_levels(schedule) if flow else schedule.sigmas.tolist()
    return [_rounded(sigma) for sigma in (levels if levels[-1] == 0 else [*levels, 0.0])]


def _flow_levels(schedule: TimestepSchedule) -> list[float]:
    """sigma in [0, 1], descending; a last level of 0 is what the run ends at, not a step."""
    return [t / NUM_TRAIN_TIMESTEPS for t in schedule.timesteps if t > 0]


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
