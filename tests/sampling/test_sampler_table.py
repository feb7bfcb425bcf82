"""The table of samplers says of each what diffusers really does."""

from __future__ import annotations

import typing

import pytest
import torch
from pydantic import ValidationError

from osp_opt.base.errors import ScheduleError
from osp_opt.base.samplers import MAX_STEPS, SAMPLER_KINDS, Sampler
from osp_opt.options import SampleOptions
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import StochasticScheduler, make_scheduler, set_schedule


def makes(name: str, steps: int) -> bool:
    """Whether a run of so many steps ends with finite numbers."""
    scheduler = make_scheduler(name)
    generator = torch.Generator().manual_seed(0)
    try:
        set_schedule(scheduler, TimestepSchedule.uniform(steps))
    except ValueError:
        return False
    x = torch.randn(1, 4, 1, 2, 2, generator=generator) * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        predicted = 0.1 * torch.randn(seen.shape, generator=generator)
        x = scheduler.step(predicted, t, x, return_dict=False)[0]
    return bool(torch.isfinite(x).all())


def test_options_offer_what_the_table_has() -> None:
    assert typing.get_args(Sampler) == tuple(SAMPLER_KINDS)


@pytest.mark.parametrize("name", SAMPLER_KINDS)
def test_steps_that_a_sampler_makes(name: str) -> None:
    kind = SAMPLER_KINDS[name]
    for steps in {kind.fewest, kind.fewest + 1, kind.most}:
        assert makes(name, steps), steps
    for steps in {kind.fewest - 1, kind.most + 1} & set(range(1, MAX_STEPS + 1)):
        assert not makes(name, steps), steps
        with pytest.raises(ValidationError, match=f"{kind.fewest} to {kind.most} steps"):
            SampleOptions(sampler=name, steps=steps)


@pytest.mark.parametrize("name", SAMPLER_KINDS)
def test_how_a_sampler_takes_a_schedule_and_noise(name: str) -> None:
    kind = SAMPLER_KINDS[name]
    scheduler = make_scheduler(name)
    schedule = TimestepSchedule((900.5, 500.25, 100.75))
    if kind.timesteps is None:
        with pytest.raises(ScheduleError, match="cannot follow"):
            set_schedule(scheduler, schedule)
    else:
        set_schedule(scheduler, schedule)
        first = float(scheduler.timesteps[0])
        assert first == pytest.approx(900.5 if kind.timesteps == "float" else 900, abs=1e-3)
    draws = isinstance(scheduler, StochasticScheduler)
    assert draws == kind.ancestral or name == "DDIM", "DDIM takes noise and, at eta 0, uses none"
