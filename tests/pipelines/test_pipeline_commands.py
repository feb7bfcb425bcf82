"""Every command on other people's pipelines: tiny random ones that lie in folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import Job
from tiny_pipelines import FAMILIES, wan

from osp_opt.base.artifacts import read_meta
from osp_opt.calibration import Calibration
from osp_opt.generate.manifest import read_takes
from osp_opt.options import (
    CalibrateOptions,
    SampleOptions,
    SearchStepsOptions,
)
from osp_opt.pipelines.diffusers_pipeline import open_pipeline
from osp_opt.sampling.noise_scale import FLOW

pytest.importorskip("accelerate")  # without it diffusers loads no Wan

PROMPTS = ("a red ball", "a blue cat")
STEPS = 12
Saved = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Folders of tiny pipelines, as the options that name them."""
    made: dict[str, dict[str, Any]] = {}

    def flags(name: str) -> dict[str, Any]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            builders = {**FAMILIES, "wan2": lambda: wan(experts=2)}
            pipe, arguments = builders[name]()
            pipe.save_pretrained(folder / "pipeline")
            (folder / "call.yaml").write_text(yaml.safe_dump(arguments))
            made[name] = {
                "pipeline": str(folder / "pipeline"),
                "pipeline_args": folder / "call.yaml",
            }
        return made[name]

    return flags


@pytest.mark.parametrize("name", [*FAMILIES, "wan2"])
def test_calibrate_search_and_sample(name: str, saved: Saved, run_job: Job, tmp_path: Path) -> None:
    flags = {**saved(name), "workdir": tmp_path, "device": "cpu"}

    # calibrate: the plain pipeline's videos, recorded at its own levels
    run_job(CalibrateOptions(**flags, text_prompt=PROMPTS, steps=STEPS))
    calibration = Calibration.load(tmp_path / "calibration" / "calibration.safetensors")
    assert calibration.prompts == PROMPTS
    arguments = yaml.safe_load(Path(flags["pipeline_args"]).read_text())
    driven = open_pipeline(flags["pipeline"], arguments=arguments)
    assert list(calibration.timesteps) == pytest.approx(driven.own_levels(STEPS))
    assert (calibration.scale == FLOW) == (name != "cogvideox")
    (take,) = read_takes(tmp_path / "calibration")
    assert take.is_uniform

    # search-steps: levels that the pipeline follows
    said = run_job(SearchStepsOptions(**flags, steps=(5,)))
    path = tmp_path / "search-steps" / "searched_schedule.txt"
    levels = json.loads(path.read_text())
    assert len(levels) == 5
    assert levels == sorted(levels)
    assert 0 < levels[0] < levels[-1] <= 1.0
    meta = read_meta(path)
    assert meta is not None
    assert meta["setting"]["arguments"] == arguments
    assert "schedule of 5 steps" in said

    # sample: without anything searched the plain pipeline's video, to the bit
    run_job(SampleOptions(**flags, text_prompt="a fox", steps=5, plain=True, raw=True, seed=3))
    (video,) = (take,) = read_takes(tmp_path / "samples")
    torch.manual_seed(0)
