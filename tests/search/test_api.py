"""The searches as functions find what the commands find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Job

import osp_opt
from osp_opt.base.errors import CalibrationError, OptionError
from osp_opt.calibration import Calibration
from osp_opt.options import CalibrateOptions, SearchCacheOptions, SearchStepsOptions
from osp_opt.pipelines.load import load_pipeline
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.device import Device

STEPS = 8
PROMPTS = ("a green tree", "a boat")


@pytest.fixture(scope="module")
def pipe(tiny_checkpoint: Path) -> Any:
    options = SearchStepsOptions(model_path=str(tiny_checkpoint))
    return load_pipeline(options, Device.open("cpu")).pipeline


@pytest.fixture(scope="module")
def calibration(pipe: Any) -> Calibration:
    return osp_opt.calibrate(pipe, PROMPTS, steps=STEPS)


def test_calibrate_records_what_the_command_records(
    calibration: Calibration, model_flags: dict[str, Any], run_job: Job
) -> None:
    wanted = CalibrateOptions(steps=STEPS, text_prompt=PROMPTS, **model_flags)
    run_job(wanted)
    command = Calibration.load(wanted.out_dir / "calibration.safetensors")
    assert calibration.prompts == command.prompts == PROMPTS
    assert calibration.seeds == command.seeds
    assert np.array_equal(calibration.timesteps, command.timesteps)
    for name in ("step_gram", "block_gram", "guided_block_gram"):
        assert np.array_equal(getattr(calibration, name), getattr(command, name), equal_nan=True)


def test_the_table_decides_as_the_command_does(
    calibration: Calibration, model_flags: dict[str, Any], run_job: Job
) -> None:
    found = osp_opt.search_steps(calibration, 5)
    assert found.verification is None
    calibration.save(model_flags["workdir"] / "calibration" / "calibration.safetensors")
    wanted = SearchStepsOptions(steps="5", verify=False, **model_flags)
    run_job(wanted)
    written = TimestepSchedule.from_file(wanted.schedule_path)
    np.testing.assert_allclose(found.schedule.timesteps, written.timesteps, atol=1e-3)


def test_videos_judge_where_there_is_a_pipeline(
    calibration: Calibration, pipe: Any, tmp_path: Path
) -> None:
    found = osp_opt.search_steps(
        calibration, 4, pipe, verify=True, verify_prompts=2, budget=3.0, folder=tmp_path
    )
    assert found.verification is not None
    assert found.verification.searched.psnr.count == 2
    ledger = tmp_path / SearchStepsOptions(workdir=tmp_path).run_dir.relative_to(tmp_path)
    before = (ledger / "trials.jsonl").read_bytes()
    again = osp_opt.search_steps(
        calibration, 4, pipe, verify=True, verify_prompts=2, budget=3.0, folder=tmp_path
    )
    assert again.schedule == found.schedule
    assert (ledger / "trials.jsonl").read_bytes() == before, "nothing is measured twice"


def test_a_cache_is_found_and_sampled_with(calibration: Calibration, pipe: Any) -> None:
    found = osp_opt.search_cache(calibration, 1.2, pipe, policy="four-field")
    assert found.evidence is None, "not verified unless asked for"
    assert found.candidate.speedup >= 1.2
    found.policy.validate(4, STEPS)
    with pytest.raises(osp_opt.OspOptError, match="--ratio 19"):
        osp_opt.search_cache(calibration, 19.0, pipe)


def test_wrong_arguments_are_one_line(
    calibration: Calibration, pipe: Any, tiny_checkpoint: Path
) -> None:
    with pytest.raises(OptionError, match="gidance"):
        osp_opt.calibrate(pipe, PROMPTS, gidance=3)
    with pytest.raises(OptionError, match="workdir"):
        osp_opt.search_steps(calibration, 5, workdir="elsewhere")
    with pytest.raises(OptionError, match="one number"):
        osp_opt.search_steps(calibration, 4, all_steps=True)
    with pytest.raises(CalibrationError, match=r"guidance_scale 2\.0, now 3"):
        osp_opt.search_steps(calibration, 5, pipe, verify=True, guidance_scale=3.0)


def test_another_model_is_refused(calibration: Calibration, tiny_checkpoint: Path) -> None:
    options = SearchCacheOptions(model_path=str(tiny_checkpoint))
    other = load_pipeline(options, Device.open("cpu")).pipeline
    other.transformer.proj_out.weight.data.add_(1.0)
    with pytest.raises(CalibrationError, match="another model"):
        osp_opt.search_cache(calibration, 1.2, other)
