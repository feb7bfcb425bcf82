"""Every command on other people's pipelines: tiny random ones that lie in folders."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from running import Job
from tiny_pipelines import FAMILIES, wan

from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import OptionError, PolicyError
from osp_opt.base.video import read_video
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration import Calibration
from osp_opt.evaluate.files import open_takes
from osp_opt.evaluate.job import run as evaluate
from osp_opt.export.targets import export
from osp_opt.generate.manifest import read_takes
from osp_opt.options import (
    CalibrateOptions,
    EvaluateOptions,
    ExportOptions,
    OptimizeOptions,
    ReportOptions,
    SampleOptions,
    SearchCacheOptions,
    SearchStepsOptions,
)
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline, open_pipeline
from osp_opt.report.job import run as report
from osp_opt.report.runs import folders_to_report
from osp_opt.sampling.noise_scale import FLOW
from osp_opt.sampling.recipe import Recipe

pytest.importorskip("accelerate")  # without it diffusers loads no Wan

PROMPTS = ("a red ball", "a blue cat")
STEPS = 9
Flags = dict[str, Any]
Calibrate = Callable[[str, Path], None]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Flags]:
    """Folders of tiny pipelines, as the options that name them."""
    made: dict[str, Flags] = {}
    builders = {**FAMILIES, "wan2": lambda: wan(experts=2)}

    def flags(name: str) -> Flags:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            pipe, arguments = builders[name]()
            pipe.save_pretrained(folder / "pipeline")
            (folder / "call.yaml").write_text(yaml.safe_dump(arguments))
            made[name] = {
                "pipeline": str(folder / "pipeline"),
                "pipeline_args": folder / "call.yaml",
                "device": "cpu",
            }
        return made[name]

    return flags


def opened(flags: Flags) -> DiffusersPipeline:
    arguments = yaml.safe_load(Path(flags["pipeline_args"]).read_text())
    return open_pipeline(flags["pipeline"], arguments=arguments)


def plain(driven: DiffusersPipeline, prompt: str, seed: int, steps: int) -> np.ndarray:
    """What everybody gets who calls the pipeline, uint8."""
    made = driven.pipe(
        prompt=prompt,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
        **driven.arguments,
    )
    return (made.frames[0].clip(0, 1) * 255).astype(np.uint8)


@pytest.fixture(scope="module")
def calibrated() -> dict[str, Path]:
    """Working folders in which calibrate has run, by the pipeline."""
    return {}


@pytest.fixture
def calibrate(
    saved: Callable[[str], Flags], calibrated: dict[str, Path], run_job: Job
) -> Calibrate:
    """Puts into a working folder what calibrate makes of a pipeline; it runs once."""

    def prepare(name: str, workdir: Path) -> None:
        if name in calibrated:
            shutil.copytree(calibrated[name], workdir, dirs_exist_ok=True)
        else:
            run_job(
                CalibrateOptions(**saved(name), workdir=workdir, text_prompt=PROMPTS, steps=STEPS)
            )
            calibrated[name] = Path(shutil.copytree(workdir, f"{workdir}-calibrated"))

    return prepare


@pytest.mark.parametrize("name", [*FAMILIES, "wan2"])
def test_calibrate_search_steps_and_sample(
    name: str, saved: Callable[[str], Flags], calibrate: Calibrate, run_job: Job, tmp_path: Path
) -> None:
    flags = {**saved(name), "workdir": tmp_path}
    driven = opened(flags)

    # calibrate: the pipeline's own levels
    calibrate(name, tmp_path)
    calibration = Calibration.load(tmp_path / "calibration" / "calibration.safetensors")
    assert calibration.prompts == PROMPTS
    assert list(calibration.timesteps) == pytest.approx(driven.own_levels(STEPS))
    assert (calibration.scale == FLOW) == (name != "cogvideox")
    assert calibration.boundary == (875.0 if name == "wan2" else None)
    (take,) = read_takes(tmp_path / "calibration")
    assert take.is_uniform

    # search-steps: a file in the reference tool's format, with what it was made for
    run_job(SearchStepsOptions(**flags, steps=(5,), verify=False))
    path = tmp_path / "search-steps" / "searched_schedule.txt"
    levels = json.loads(path.read_text())
    assert len(levels) == 5
    assert levels == sorted(levels)
    assert 0 < levels[0] < levels[-1] <= 1.0
    setting = (read_meta(path) or {})["setting"]
    assert setting["arguments"] == driven.arguments
    assert setting["sampler"] == driven.steering.name

    # sample: with the levels that were found, and plain
    said = run_job(SampleOptions(**flags, text_prompt="a fox", seed=3, raw=True))
    assert f"using {path}" in said or setting["own_steps"]
    run_job(SampleOptions(**flags, text_prompt="a fox", seed=3, raw=True, plain=True, steps=5))
    takes = read_takes(tmp_path / "samples")
    own = next(take for take in takes if take.is_uniform)
    frames = read_video(own.videos[0].raw)
    assert np.array_equal(frames, plain(driven, "a fox", 3, 5))
    if not setting["own_steps"]:
        (other,) = (take for take in takes if not take.is_uniform)
        assert "searched" in other.label
        assert other.timesteps == pytest.approx([1000 * s for s in reversed(levels)])
        assert not np.array_equal(read_video(other.videos[0].raw), frames)


@pytest.mark.parametrize("name", [*FAMILIES, "wan2"])
def test_the_walk_with_a_cache_and_evidence(
    name: str, saved: Callable[[str], Flags], calibrate: Calibrate, run_job: Job, tmp_path: Path
) -> None:
    flags = {**saved(name), "workdir": tmp_path}
    calibrate(name, tmp_path)
    videos: Flags = {"prompt_file": tmp_path / "prompts.txt"}
    videos["prompt_file"].write_text("a fox\na boat\na tree\n")

    # search-steps, judged on fresh prompts
    judged = {**flags, **videos, "verify": True, "verify_prompts": 1}
    run_job(SearchStepsOptions(**judged, steps=(6,), budget=4))
    found = read_meta(tmp_path / "search-steps" / "searched_schedule.txt") or {}
    assert found["search"]["verification"]["searched"]["psnr"]["count"] == 1

    # search-cache for the original's steps, timed and judged
    said = run_job(SearchCacheOptions(**judged, steps=STEPS, ratio=1.05, budget=8, force=True))
    assert "measured speed-up of denoising" in said
    place = tmp_path / "search-cache" / "dit_cache_config.json"
    policy = CachePolicy.from_file(place)
    policy.validate(2, STEPS)
    assert (read_meta(place) or {})["setting"]["steps"] == STEPS
    if name == "wan2":  # what the first transformer stored is not for the second
        first = sum(t >= 875.0 for t in opened(flags).own_levels(STEPS))
        assert 0 < first < STEPS
        assert not policy.reuse_ranges(first)

    # optimize: a recipe that the pipeline follows
    run_job(OptimizeOptions(**flags, **videos, speedup=2, budget=6, verify_prompts=1, force=True))
    recipe = tmp_path / "optimize" / "recipe.json"
    assert Recipe.from_file(recipe).sampler == opened(flags).steering.name
    run_job(SampleOptions(**flags, text_prompt="a fox", recipe=recipe, out=tmp_path / "fast"))
    (take,) = read_takes(tmp_path / "fast")
    assert take.timesteps == Recipe.from_file(recipe).timesteps

    # sample both, compare, report
    few = {**flags, "text_prompt": ("a fox", "a boat"), "steps": STEPS}
    run_job(SampleOptions(**few, out=tmp_path / "baseline"))
    said = run_job(SampleOptions(**few, cache=place))
    assert re.search(r"fewer block evaluations, [\d.e-]+ MiB held at most", said)
    assert "warning" not in said
    compared = EvaluateOptions(workdir=tmp_path, reference=tmp_path / "baseline")
    assert evaluate(compared, *open_takes(compared)) == 0
    found = json.loads((tmp_path / "evaluate" / "evaluation.json").read_text())
    assert found["pairs"] == 2
    assert found["speedup"] is not None
    reported = ReportOptions(workdir=tmp_path)
    assert report(reported, folders_to_report(reported)) == 0
    page = (tmp_path / "report.html").read_text()
    assert f"{STEPS} own steps" in page
    assert "the scheduler's own, measured" in page
    assert "uniform" not in page.lower()

    # export: what others read, and what cannot be said in their words
    schedule = tmp_path / "search-steps" / "searched_schedule.txt"
    refusals = {
        ("ltx", "diffusers"): "shifts levels by the size of the video; give --shift",
        ("cogvideox", "comfyui"): "timesteps are those of CogVideoXDDIMScheduler",
    }
    for file, to in ((schedule, "diffusers"), (schedule, "comfyui"), (place, "osp-opt")):
        wanted = ExportOptions(to=to, file=file)
        if (name, to) in refusals:
            with pytest.raises(OptionError, match=refusals[name, to]):
                export(file, wanted)
        else:
            assert all(export(file, wanted).forms.values())


def test_sampling_goes_on_where_it_stopped(
    saved: Callable[[str], Flags], run_job: Job, tmp_path: Path
) -> None:
    flags = {**saved("wan"), "workdir": tmp_path, "steps": 3}
    run_job(SampleOptions(**flags, text_prompt="a fox"))
    said = run_job(SampleOptions(**flags, text_prompt=("a fox", "a boat")))
    assert "1 of 2 videos are there already" in said


def test_a_cache_that_crosses_the_experts_is_refused_before_sampling(
    saved: Callable[[str], Flags], run_job: Job, tmp_path: Path
) -> None:
    place = tmp_path / "policy.json"
    CachePolicy.explicit({step: [(0, 1)] for step in range(2, STEPS)}, STEPS).save(place)
    options = SampleOptions(
        **saved("wan2"), workdir=tmp_path, text_prompt="a", steps=STEPS, cache=place
    )
    with pytest.raises(PolicyError, match=r"policy\.json: step \d is made by the second trans"):
        run_job(options)
    assert not list((tmp_path / "samples").glob("*.mp4"))
