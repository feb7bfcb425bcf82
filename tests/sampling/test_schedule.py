"""Schedules and noise levels against diffusers and the reference tool's files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from safetensors.torch import load_file

from osp_opt.base.errors import FileError, ScheduleError
from osp_opt.sampling.schedule import (
    TimestepSchedule,
    alphas_cumprod,
    sigma_of,
    sigma_table,
    timestep_of,
)


def test_levels_are_those_of_diffusers() -> None:
    scheduler = EulerAncestralDiscreteScheduler()
    assert torch.equal(alphas_cumprod(), scheduler.alphas_cumprod.double())
    np.testing.assert_allclose(sigma_table(), scheduler.sigmas.flip(0)[1:].numpy(), rtol=1e-5)


@pytest.mark.parametrize("steps", [2, 7, 10, 50, 100, 333])
def test_uniform_is_the_schedulers_own(steps: int) -> None:
    scheduler = EulerAncestralDiscreteScheduler()
    scheduler.set_timesteps(steps)
    schedule = TimestepSchedule.uniform(steps)
    assert list(schedule.timesteps) == scheduler.timesteps.tolist()
    np.testing.assert_allclose(schedule.sigmas, scheduler.sigmas.numpy(), rtol=1e-5)
    assert len(schedule) == steps
    assert schedule.sigmas[-1] == 0.0


def test_custom_sigmas_are_those_of_the_reference_run(golden: Path) -> None:
    schedule = TimestepSchedule.from_file(golden / "pipeline" / "schedule_timestep.txt")
    want = load_file(golden / "pipeline" / "run2_custom_timesteps.safetensors")
    np.testing.assert_allclose(schedule.timesteps, want["out.timesteps"].numpy(), rtol=1e-12)
    np.testing.assert_allclose(schedule.sigmas, want["out.sigmas"].numpy(), rtol=1e-5)
    assert not schedule.is_default


def test_sigma_and_timestep_are_inverse() -> None:
    t = np.linspace(0, 999, 777)
    np.testing.assert_allclose(timestep_of(sigma_of(t)), t, atol=1e-9)
    assert isinstance(sigma_of(12.5), float)
    assert sigma_of(12.5) == pytest.approx((sigma_table()[12] + sigma_table()[13]) / 2)
    assert timestep_of(1e9) == 999.0


def test_reference_tools_file_loads_and_ours_has_its_form(golden: Path, tmp_path: Path) -> None:
    theirs = golden / "reference_tool_files" / "searched_schedule.txt"
    schedule = TimestepSchedule.from_file(theirs)
    schedule.save(tmp_path / "schedule.txt")
    # indent 4, ascending, first 0.0, last 0.999: what its own loader reads
    written = (tmp_path / "schedule.txt").read_text()
    values, want = json.loads(written), json.loads(theirs.read_text())
    assert written == json.dumps(values, indent=4)
    # In the float32 of its sampler the same timesteps; what is no float32 stays as it is.
    assert np.array_equal(np.float32(values) * 1000, np.float32(want) * 1000)
    assert values == pytest.approx(want, abs=1e-8)
    again = TimestepSchedule.from_file(tmp_path / "schedule.txt").timesteps
    assert np.array_equal(np.float32(again), np.float32(schedule.timesteps))


def test_equality_ignores_where_a_schedule_came_from() -> None:
    made = TimestepSchedule.uniform(5)
    assert made == TimestepSchedule(made.timesteps)
    assert made.is_default
    assert not TimestepSchedule(made.timesteps).is_default
    assert TimestepSchedule.uniform(1).timesteps == (999.0,)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ((), "empty"),
        ((999.0, 999.0), "strictly descend"),
        ((1.0, 2.0), "strictly descend"),
        ((1000.0, 3.0), "must lie in"),
        ((5.0, -0.5), "must lie in"),
        ((float("nan"), 1.0), "must lie in"),
        ((float("inf"), 1.0), "must lie in"),
    ],
)
def test_wrong_timesteps_are_refused(timesteps: tuple[float, ...], message: str) -> None:
    with pytest.raises(ScheduleError, match=message):
        TimestepSchedule(timesteps)


def test_no_steps_are_refused() -> None:
    with pytest.raises(ScheduleError, match="at least 1"):
        TimestepSchedule.uniform(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not a schedule"),
        ('{"a": 1}', "not a schedule"),
        ("[0.0, true]", "entry 1 is True"),
        ('[0.0, "x"]', "entry 1 is 'x'"),
        ("[0.0, 1.0]", "entry 1 is 1.0"),
        ("[-0.1, 0.5]", "entry 0 is -0.1"),
        ("[0.5, 0.2]", "entry 1 is 0.2 after 0.5"),
        ("[0.2, 0.2]", "strictly ascend"),
        ("[0.1, [0.2]]", "entry 1"),
    ],
)
def test_wrong_files_name_file_and_entry(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "schedule.txt"
    file.write_text(content)
    with pytest.raises(ScheduleError, match=message) as caught:
        TimestepSchedule.from_file(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[0.1,", b"\xff\xfe", b"[NaN]", b"[1e999]", b"[[[0]]]"])
def test_unreadable_files_are_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "schedule.txt"
    file.write_bytes(content)
    with pytest.raises(FileError, match=r"schedule\.txt"):
        TimestepSchedule.from_file(file)
    with pytest.raises(FileError):
        TimestepSchedule.from_file(tmp_path / "missing.txt")


@pytest.mark.parametrize("steps", [2, 7, 50, 100, 997])
def test_files_hold_no_dust_and_give_the_same_timesteps(tmp_path: Path, steps: int) -> None:
    uniform = TimestepSchedule.uniform(steps)
    path = tmp_path / "schedule.txt"
    uniform.save(path)
    found = TimestepSchedule.from_file(path)
    assert np.array_equal(np.float32(found.timesteps), np.float32(uniform.timesteps))
    assert found.is_uniform
    assert max(len(line.strip(" ,")) for line in path.read_text().splitlines()) <= 12
