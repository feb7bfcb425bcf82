"""Schedules for others, read by the schedulers of diffusers themselves."""

from __future__ import annotations

import numpy as np
import pytest
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from osp_opt.base.errors import ScheduleError
from osp_opt.export.timesteps import comfyui_sigmas, diffusers_sigmas, diffusers_timesteps
from osp_opt.sampling.schedule import TimestepSchedule

SCHEDULE = TimestepSchedule((999.0, 901.3, 640.25, 333.0, 120.4, 0.0))


def test_euler_takes_the_timesteps_or_the_sigmas() -> None:
    scheduler = EulerDiscreteScheduler()
    scheduler.set_timesteps(timesteps=diffusers_timesteps(SCHEDULE))
    assert scheduler.timesteps.tolist() == pytest.approx(SCHEDULE.timesteps, abs=1e-3)
    scheduler.set_timesteps(sigmas=diffusers_sigmas(SCHEDULE))
    assert scheduler.sigmas.tolist() == pytest.approx(SCHEDULE.sigmas.tolist(), rel=1e-5)
    # diffusers goes back from sigma to a timestep by the logarithm of sigma, we came linearly.
    assert scheduler.timesteps.tolist() == pytest.approx(SCHEDULE.timesteps, abs=0.1)


def test_a_scheduler_of_whole_timesteps_gets_whole_ones() -> None:
    whole = diffusers_timesteps(SCHEDULE, "DPMSolverMultistep")
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(timesteps=whole)
    assert scheduler.timesteps.tolist() == whole == [999, 901, 640, 333, 120, 0]
    with pytest.raises(ScheduleError, match="round to one"):
        diffusers_timesteps(TimestepSchedule((500.0, 499.8)), "DDIM")


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_a_flow_matching_scheduler_ends_where_the_schedule_is(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=diffusers_sigmas(SCHEDULE, shift))
    assert scheduler.timesteps.tolist() == pytest.approx(SCHEDULE.timesteps[:-1], abs=1e-3)
    assert scheduler.sigmas[-1] == 0


def test_comfyui_gets_the_levels_as_they_are_with_the_last_one_0() -> None:
    plain = comfyui_sigmas(SCHEDULE)
    assert plain == pytest.approx(SCHEDULE.sigmas.tolist(), rel=1e-6)
    flow = comfyui_sigmas(SCHEDULE, flow=True)
    assert flow == pytest.approx([t / 1000 for t in SCHEDULE.timesteps], rel=1e-6)
    for levels in (plain, flow, comfyui_sigmas(TimestepSchedule((900.0, 300.0)), flow=True)):
        assert levels[-1] == 0
        assert np.all(np.diff(levels) < 0)
