"""The searches as functions on a stranger's pipeline find what the commands write."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import CogVideoXDPMScheduler, FlowMatchEulerDiscreteScheduler, WanPipeline
from running import Job
from tiny_pipelines import cogvideox, wan

import osp_opt
from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import CalibrationError, OptionError, ScheduleError
from osp_opt.base.video import read_video
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration import Calibration
from osp_opt.generate.manifest import read_takes
from osp_opt.options import CalibrateOptions, SampleOptions, SearchStepsOptions

pytest.importorskip("accelerate")  # without it diffusers loads no Wan

PROMPTS = ("a red ball", "a blue cat")
STEPS = 12


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("wan")
    pipe, arguments = wan()
    pipe.save_pretrained(folder / "pipeline")
    (folder / "call.yaml").write_text(yaml.safe_dump(arguments))
    return {
        "pipeline": str(folder / "pipeline"),
        "pipeline_args": folder / "call.yaml",
        "device": "cpu",
        "workdir": folder / "work",
    }


@pytest.fixture(scope="module")
def loaded(flags: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """It as diffusers loads it, and its call arguments, which options stand for, too."""
    pipe = WanPipeline.from_pretrained(flags["pipeline"], torch_dtype=torch.float32)
    return pipe, yaml.safe_load(flags["pipeline_args"].read_text())


@pytest.fixture(scope="module")
def calibration(loaded: Any) -> Calibration:
    pipe, arguments = loaded
    return osp_opt.calibrate(pipe, PROMPTS, steps=STEPS, **arguments)


def test_what_is_found_is_what_the_commands_write(
    calibration: Calibration, loaded: Any, flags: dict[str, Any], run_job: Job, tmp_path: Path
) -> None:
    run_job(CalibrateOptions(**flags, text_prompt=PROMPTS, steps=STEPS))
    command = Calibration.load(flags["workdir"] / "calibration" / "calibration.safetensors")
    assert (calibration.prompts, calibration.seeds) == (command.prompts, command.seeds)
    for name in ("timesteps", "step_gram", "block_gram", "guided_block_gram"):
        assert np.array_equal(getattr(calibration, name), getattr(command, name), equal_nan=True)

    pipe, arguments = loaded
    found = osp_opt.search_steps(calibration, 5, pipe, verify=False, **arguments)
    options = SearchStepsOptions(**flags, steps=(5,), verify=False)
    run_job(options)
    written = osp_opt.TimestepSchedule.from_file(options.schedule_path, calibration.scale)
    np.testing.assert_allclose(found.schedule.timesteps, written.timesteps, atol=1e-3)

    # What was found with the pipeline opened makes the command's video.
    driven = osp_opt.DiffusersPipeline(pipe, arguments)
    cache = osp_opt.search_cache(calibration, 1.05, driven)
    place = tmp_path / "policy.json"
    cache.policy.save(place)
    made = driven.denoise("a fox", 3, STEPS, cache=CachePolicy.from_file(place))
    run_job(
        SampleOptions(
            **flags, text_prompt="a fox", seed=3, raw=True, steps=STEPS, cache=place, out=tmp_path
        )
    )
    ((video,),) = (take.videos for take in read_takes(tmp_path))
    assert np.array_equal(read_video(video.raw), driven.decode(made.latents, 3))
    assert not torch.equal(made.latents, driven.denoise("a fox", 3, STEPS).latents)


def test_what_is_found_with_an_opened_folder_is_for_that_folder(
    flags: dict[str, Any], run_job: Job, tmp_path: Path
) -> None:
    arguments = yaml.safe_load(flags["pipeline_args"].read_text())
    opened = osp_opt.open_pipeline(flags["pipeline"], arguments=arguments)
    osp_opt.calibrate(opened, PROMPTS[:1], steps=STEPS, folder=tmp_path)
    options = SearchStepsOptions(**{**flags, "workdir": tmp_path}, steps=(5,), verify=False)
    run_job(options)
    setting = (read_meta(options.schedule_path) or {})["setting"]
    assert setting["model"] == opened.fingerprint
    assert setting["arguments"] == arguments


def test_videos_judge(calibration: Calibration, loaded: Any) -> None:
    pipe, arguments = loaded
    judged = {"verify": True, "verify_prompts": 1, "text_prompt": ("a fox", "a boat", "a tree")}
    found = osp_opt.search_steps(calibration, 6, pipe, budget=4.0, **judged, **arguments)
    assert found.verification is not None
    assert found.verification.searched.psnr.count == 1


def test_another_pipeline_is_refused(calibration: Calibration, loaded: Any) -> None:
    pipe, arguments = loaded
    other = copy.deepcopy(pipe)
    other.transformer.proj_out.weight.data.add_(1.0)
    with pytest.raises(CalibrationError, match="another model"):
        osp_opt.search_cache(calibration, 1.2, other, **arguments)
    shifted = copy.copy(pipe)
    shifted.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    with pytest.raises(CalibrationError, match="another model"):
        osp_opt.search_steps(calibration, 5, shifted, verify=False, **arguments)
    with pytest.raises(CalibrationError, match="calibrated with arguments"):
        osp_opt.search_steps(calibration, 5, pipe, verify=False)


def test_what_the_commands_refuse_is_refused(calibration: Calibration, loaded: Any) -> None:
    pipe, arguments = loaded
    with pytest.raises(OptionError, match="only it knows"):
        osp_opt.search_steps(calibration, 5)
    with pytest.raises(OptionError, match="too few to choose from"):
        osp_opt.calibrate(pipe, PROMPTS, steps=8, **arguments)
    with pytest.raises(OptionError, match="sampler: means nothing to a --pipeline"):
        osp_opt.calibrate(pipe, PROMPTS, sampler="DDIM")
    with pytest.raises(OptionError, match="--height: it stands in the call arguments too"):
        osp_opt.calibrate(osp_opt.DiffusersPipeline(pipe, arguments), PROMPTS, height=16)
    with pytest.raises(OptionError, match="takes no argument 'hight'"):
        osp_opt.DiffusersPipeline(pipe, {"hight": 16})
    with pytest.raises(OptionError, match="no JSON file could hold"):
        osp_opt.calibrate(osp_opt.DiffusersPipeline(pipe, {"attention_kwargs": pipe}), PROMPTS)
    with pytest.raises(OptionError, match="pipe: a WanTransformer3DModel"):
        osp_opt.calibrate(pipe.transformer, PROMPTS)
    noisy, size = cogvideox(CogVideoXDPMScheduler())
    with pytest.raises(ScheduleError, match="CogVideoXDPMScheduler draws fresh noise"):
        osp_opt.calibrate(noisy, PROMPTS, steps=STEPS, **size)
