"""Record a stranger's pipeline, find steps, sample them: the walk of docs/your-pipeline.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import FlowMatchHeunDiscreteScheduler

import osp_opt
from osp_opt.calibration import Calibration
from osp_opt.cli import doctor
from osp_opt.options import DoctorOptions
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline
from osp_opt.search.steps.candidates import StepTable, objectives_for

LEVELS = 20


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox"])
def test_a_recording_gives_schedules_that_the_pipeline_follows(
    name: str, tiny: Any, tmp_path: Any
) -> None:
    """Random networks: what the table says is the least cost; what a model makes of it is not."""
    pipeline = DiffusersPipeline(*tiny[name])
    calibration = osp_opt.calibrate(pipeline, ["a red ball"], steps=LEVELS)
    calibration.save(tmp_path / "calibration.safetensors")
    calibration = Calibration.load(tmp_path / "calibration.safetensors")
    table = StepTable(calibration, pipeline.kind, own=pipeline.schedule)
    full = pipeline.denoise("a red ball", 42, LEVELS).latents.float()

    def error(levels: tuple[float, ...]) -> float:
        latents = pipeline.denoise("a red ball", 42, levels=levels).latents.float()
        return float((latents - full).square().mean())

    assert error(pipeline.own_levels(LEVELS)) == 0.0
    (objective, *_) = objectives_for(pipeline.kind)
    assert objective.label == "deterministic(c=0.5,p=0)"
    for steps in (5, 8):
        found, own = table.best(objective, steps).schedule, table.uniform(steps).schedule
        assert len(found) == len(own) == steps
        assert 0.0 < error(found.timesteps) < np.inf
        assert np.all(table.costs(found, objective) <= table.costs(own, objective))


def test_the_documented_walk(tiny: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines of docs/your-pipeline.md, on a pipeline that lies in a folder."""
    pipe, arguments = tiny["ltx"]
    pipe.save_pretrained(tmp_path)
    document = (Path(__file__).parents[2] / "docs" / "your-pipeline.md").read_text()
    found = re.search(r"```python\n(.*?)```", document, re.DOTALL)
    assert found
    names: dict[str, Any] = {"FOLDER": tmp_path, "SIZE": arguments}
    exec(found.group(1), names)
    assert "times that of the scheduler's own steps" in capsys.readouterr().out
    assert names["frames"].shape == (9, 32, 32, 3)
    assert len(names["steps"].schedule) == 8
    assert names["same"].latents.shape == names["made"].latents.shape


def test_doctor_says_what_works(tiny: Any, tmp_path: Path, capsys: Any) -> None:
    pipe, _ = tiny["ltx"]
    pipe.save_pretrained(tmp_path)
    assert doctor.run(DoctorOptions(pipeline=str(tmp_path), device="cpu")) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "FlowMatchEulerDiscreteScheduler: 1000 s of flow matching" in told
    assert "2 registered blocks in each of transformer" in told
    assert "osp-opt calibrate --pipeline" in told
    FlowMatchHeunDiscreteScheduler().save_pretrained(tmp_path / "scheduler")
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace("FlowMatchEuler", "FlowMatchHeun"))
    assert doctor.run(DoctorOptions(pipeline=str(tmp_path), device="cpu")) == 2
    told = " ".join(capsys.readouterr().out.split())
    assert "problem: scheduler FlowMatchHeunDiscreteScheduler cannot follow a schedule" in told
