"""What was found for another pipeline, exported: its own call makes the video of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler
from running import Job
from tiny_pipelines import hunyuan, ltx

from osp_opt.base.errors import OptionError
from osp_opt.export.targets import export
from osp_opt.options import CalibrateOptions, ExportOptions, SampleOptions, SearchStepsOptions
from osp_opt.pipelines.diffusers_pipeline import open_pipeline
from osp_opt.sampling.schedule import TimestepSchedule


def searched(made: tuple[Any, dict[str, Any]], run_job: Job, place: Path) -> tuple[Path, Any]:
    """A schedule of 5 steps that was searched for a pipeline, and the pipeline, opened again."""
    pipe, arguments = made
    pipe.save_pretrained(place / "pipeline")
    (place / "call.yaml").write_text(yaml.safe_dump(arguments))
    flags: dict[str, Any] = {
        "pipeline": str(place / "pipeline"),
        "pipeline_args": place / "call.yaml",
        "workdir": place / "work",
        "device": "cpu",
    }
    run_job(CalibrateOptions(**flags, text_prompt="a red ball", steps=9))
    run_job(SearchStepsOptions(**flags, steps=(5,), verify=False, force=True))
    run_job(SampleOptions(**flags, text_prompt="a fox", seed=3))
    path = place / "work" / "search-steps" / "searched_schedule.txt"
    return path, open_pipeline(place / "pipeline", arguments=arguments)


def test_sigmas_in_the_pipelines_own_call(run_job: Job, tmp_path: Path) -> None:
    path, driven = searched(hunyuan(), run_job, tmp_path)
    made = export(path, ExportOptions(to="diffusers", file=path))
    values: dict[str, Any] = {}
    exec(str(made.forms[".py"]), values)
    driven.pipe.set_progress_bar_config(disable=True)
    alone = driven.pipe(
        prompt="a fox",
        sigmas=values["sigmas"],
        num_inference_steps=5,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
        **driven.arguments,
    ).frames
    levels = TimestepSchedule.from_file(path).timesteps
    ours = driven.denoise("a fox", 3, levels=levels).latents
    assert torch.allclose(alone, ours, atol=1e-4)
    assert (alone - driven.denoise("a fox", 3, 5).latents).abs().max() > 1e-2
    comfyui = export(path, ExportOptions(to="comfyui", file=path)).forms[".txt"]
    shown = [float(word) for word in str(comfyui).split(",")]
    assert shown == pytest.approx([*(t / 1000 for t in levels), 0.0], abs=1e-6)


def test_a_scheduler_that_shifts_by_size_needs_to_be_told(run_job: Job, tmp_path: Path) -> None:
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    path, _ = searched(ltx(own), run_job, tmp_path)
    with pytest.raises(OptionError, match=r"shifts levels by the size of the video; give --shift"):
        export(path, ExportOptions(to="diffusers", file=path))
