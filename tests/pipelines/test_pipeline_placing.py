"""Offloading, tiles and compiled blocks change how a pipeline computes, not its videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from running import Job
from tiny_pipelines import FAMILIES, wan

import osp_opt
from osp_opt.base.errors import OptionError, PolicyError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.options import CalibrateOptions, SampleOptions
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline
from osp_opt.pipelines.placing import compile_blocks, offload, place
from osp_opt.run.checks import check_before_launch
from osp_opt.system.device import Device

pytest.importorskip("accelerate")

STEPS = 5
CPU = torch.device("cpu")


def compiled(pipe: Any) -> None:
    for transformer in DiffusersPipeline(pipe).transformers.values():
        compile_blocks(transformer, backend="eager")


def in_tiles(pipe: Any) -> None:
    options = SampleOptions(pipeline="a/b", save_memory=True)
    assert place(DiffusersPipeline(pipe), options, Device.open("cpu")) is None
    assert pipe.vae.use_tiling
    assert pipe.vae.use_slicing


PLACED: dict[str, Callable[[Any], object]] = {
    "parts": lambda pipe: offload(pipe, CPU, None),
    "blocks": lambda pipe: offload(pipe, CPU, 1),
    "compiled": compiled,
    "tiles": in_tiles,
}


def everything(driven: DiffusersPipeline) -> list[np.ndarray[Any, Any]]:
    """A plain video at levels of one's own, frames, its recording, and a cached video, twice."""
    policy = CachePolicy.explicit({2: [(0, 2)], 4: [(0, 1)]}, STEPS)
    levels = driven.own_levels(2 * STEPS)[::2]
    recorder = CalibrationRecorder(STEPS, driven.num_blocks, lags=(1,), guidance_scale=2.0)
    if driven.branches() == 1:
        recorder = CalibrationRecorder(STEPS, driven.num_blocks, lags=(1,))
    found: list[Any] = []
    for _ in range(2):
        recorder.reset()
        made = driven.denoise(
            "a fox",
            7,
            levels=levels,
            watch=recorder,
            on_step=lambda step: recorder.record_denoised(step.index, step.denoised),
        )
        seen = recorder.result()
        cached = driven.denoise("a fox", 7, STEPS, cache=policy)
        found += [made.latents, cached.latents, seen.step_gram, seen.block_gram]
        found.append(driven.decode(made.latents, 7))
    return [np.asarray(each) for each in found]


@pytest.mark.parametrize(
    ("how", "family"),
    [
        *(("parts", family) for family in FAMILIES),
        *(("blocks", family) for family in FAMILIES),
        *(("compiled", family) for family in ("wan", "hunyuan")),  # one kind of block, and two
        ("tiles", "wan"),
    ],
)
def test_a_placed_pipeline_makes_the_plain_ones_videos(how: str, family: str) -> None:
    pipe, arguments = FAMILIES[family]()
    plain = everything(DiffusersPipeline(pipe, arguments))
    PLACED[how](pipe)
    placed = everything(DiffusersPipeline(pipe, arguments))
    for one, other in zip(plain, placed, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(plain[0], plain[1]), "the cache did something"


def test_two_experts_are_offloaded_one_by_one() -> None:
    pipe, arguments = wan(experts=2)
    plain = DiffusersPipeline(pipe, arguments).denoise("a fox", 7, STEPS).latents
    assert offload(pipe, CPU, None) == "parts"
    assert torch.equal(plain, DiffusersPipeline(pipe, arguments).denoise("a fox", 7, STEPS).latents)


def test_what_a_pipeline_lacks_is_said() -> None:
    pipe, _ = wan()
    del pipe.vae.use_tiling
    options = SampleOptions(pipeline="a/b", save_memory=True)
    with pytest.raises(OptionError, match=r"--save-memory: the autoencoder of WanPipeline"):
        place(DiffusersPipeline(pipe), options, Device.open("cpu"))
    pipe.model_cpu_offload_seq = None
    with pytest.raises(OptionError, match="--offload: WanPipeline does not say in which order"):
        offload(pipe, CPU, None)


def test_nothing_is_offloaded_from_a_cpu(run_job: Job, tmp_path: Path) -> None:
    """Said at once where the device is named, else before the pipeline is loaded."""
    pipe, _ = wan()
    pipe.save_pretrained(tmp_path / "pipeline")
    flags: dict[str, Any] = {"pipeline": str(tmp_path / "pipeline"), "text_prompt": "a"}
    for model in (CalibrateOptions, SampleOptions):
        with pytest.raises(OptionError, match="--offload: on cpu everything"):
            check_before_launch(model(**flags, offload=True, device="cpu"))
        with pytest.raises(OptionError, match="--offload: on cpu everything"):
            run_job(model(**flags, offload=True, workdir=tmp_path))
    with pytest.raises(OptionError, match="compile: the pipeline is loaded and placed already"):
        osp_opt.calibrate(pipe, "a", compile=True)


def test_save_memory_is_noted(run_job: Job, tmp_path: Path) -> None:
    """A folder's videos in tiles and not in tiles are kept apart, as with other models."""
    pipe, arguments = wan()
    pipe.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "call.yaml").write_text(yaml.safe_dump(arguments))
    flags = {"pipeline": str(tmp_path / "pipeline"), "pipeline_args": tmp_path / "call.yaml"}
    options = {**flags, "text_prompt": "a fox", "steps": 2, "workdir": tmp_path}
    run_job(SampleOptions(**options))
    run_job(SampleOptions(**options, save_memory=True))
    assert len(list((tmp_path / "samples").glob("*.mp4"))) == 2


def test_a_cache_that_offloading_takes_off_is_said() -> None:
    """accelerate restores the transformer's own forward behind every video."""
    pipe, arguments = wan()
    pipe.enable_model_cpu_offload(device="cpu")
    policy = CachePolicy.explicit({}, STEPS, guidance=GuidancePlan((2, 4), 0))
    handle = osp_opt.apply_cache(pipe, policy, num_steps=STEPS)

    def video() -> None:
        pipe(
            prompt="a fox",
            num_inference_steps=STEPS,
            output_type="latent",
            callback_on_step_end=handle.on_step_end,
            **arguments,
        )

    video()
    with pytest.raises(PolicyError, match="apply the cache anew for each video"):
        video()
