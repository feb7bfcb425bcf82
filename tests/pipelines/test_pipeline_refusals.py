"""What is wrong with --pipeline is said in one line, before anything is sampled or written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from parsing import parse
from pydantic import ValidationError
from running import Job
from tiny_pipelines import cogvideox, ltx

from osp_opt.base.errors import (
    CalibrationError,
    CheckpointError,
    FileError,
    InputError,
    OptionError,
    RecipeError,
    ScheduleError,
)
from osp_opt.options import (
    CalibrateOptions,
    OptimizeOptions,
    SampleOptions,
    SamplingOptions,
    SearchCacheOptions,
    SearchStepsOptions,
    following,
)
from osp_opt.pipelines.diffusers_pipeline import open_pipeline
from osp_opt.pipelines.files import call_arguments, check_pipeline, described
from osp_opt.pipelines.requirements import Described
from osp_opt.run.checks import check_before_launch
from osp_opt.sampling.recipe import Recipe


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ltx")
    pipe, arguments = ltx()
    pipe.save_pretrained(folder / "pipeline")
    (folder / "call.yaml").write_text(yaml.safe_dump(arguments))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy" / "pipeline"


def changed(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refused(folder: Path, kind: type[InputError], reason: str, **options: Any) -> None:
    workdir = folder.parent / "work"
    for model in (CalibrateOptions, SampleOptions):
        made = model(pipeline=str(folder), workdir=workdir, text_prompt="a", **options)
        with pytest.raises(kind, match=reason) as error:
            check_before_launch(made)
        assert "\n" not in str(error.value)
    assert not workdir.exists()


def test_the_source_says_of_a_call_what_python_does(original: Path) -> None:
    """The reading of files and that of a loaded pipeline agree."""
    pipe, _ = ltx()
    loaded, read = Described.of(pipe), described(original / "pipeline")
    assert read is not None
    assert read.name == loaded.name
    assert list(read.parameters) == list(loaded.parameters)
    for name, parameter in loaded.parameters.items():
        has_default = parameter.default is not parameter.empty
        assert (read.parameters[name].default is not parameter.empty) == has_default
    assert read.parameters["num_inference_steps"].default == 50
    assert read.parts == loaded.parts
    assert set(read.optional) == set(loaded.optional)


@pytest.mark.parametrize(
    ("index", "reason"),
    [
        ({"_class_name": "LTXImageToVideoPipeline"}, "it starts from an image"),
        ({"_class_name": "LTX2Pipeline"}, "it makes sound"),
        ({"_class_name": "FluxPipeline"}, "it takes no num_frames, so it makes no videos"),
        ({"_class_name": "SkyReelsV2DiffusionForcingPipeline"}, "it is autoregressive"),
        ({"is_distilled": True}, r"it is distilled \(by default 50 steps\)"),
        ({"vae": [None, None]}, "vae is missing"),
        ({"_class_name": None}, "names no pipeline class"),
        ({"_class_name": "MyVideoPipeline"}, "diffusers here has no pipeline MyVideoPipeline"),
        ({"_class_name": ["mine", "MyPipeline"]}, r"MyPipeline is custom code \(mine\)"),
    ],
)
def test_other_kinds(folder: Path, index: dict[str, Any], reason: str) -> None:
    changed(folder / "model_index.json", **index)
    refused(folder, CheckpointError, reason)


def test_missing_parts(folder: Path) -> None:
    weights = next((folder / "transformer").glob("*.safetensors"))
    held = weights.read_bytes()
    weights.unlink()
    refused(folder, CheckpointError, "LTXPipeline: transformer is missing, or has no weights")
    weights.write_bytes(held)
    shutil.rmtree(folder / "vae")
    refused(folder, CheckpointError, "LTXPipeline: vae is missing")
    (folder / "model_index.json").unlink()
    refused(folder, CheckpointError, r"holds no model_index\.json")
    shutil.rmtree(folder)
    refused(folder, CheckpointError, "no such folder, and not a hub id")


def test_schedulers(folder: Path) -> None:
    file = folder / "scheduler" / "scheduler_config.json"
    changed(file, stochastic_sampling=True)
    calibrate = CalibrateOptions(pipeline=str(folder), text_prompt="a")
    with pytest.raises(ScheduleError, match="draws fresh noise at every step"):
        check_before_launch(calibrate)
    check_before_launch(SampleOptions(pipeline=str(folder), text_prompt="a"))
    changed(file, _class_name="FlowMatchHeunDiscreteScheduler")
    refused(folder, ScheduleError, "FlowMatchHeunDiscreteScheduler cannot follow a schedule")


def test_arguments(folder: Path) -> None:
    call = folder.parent / "call.yaml"
    call.write_text("hight: 32\n")
    refused(folder, OptionError, r"no argument 'hight'; it takes .*height", pipeline_args=call)
    call.write_text("latents: 1\n")
    refused(folder, OptionError, "latents: osp-opt gives this argument", pipeline_args=call)
    call.write_text("height: 2026-01-01\n")
    refused(folder, FileError, "height is datetime", pipeline_args=call)
    call.write_text("height: 32\n")
    twice = {"pipeline_args": call, "height": 32}
    refused(folder, OptionError, r"--height: it stands in .*call\.yaml too", **twice)
    call.write_text("- 32\n")
    refused(folder, FileError, "must be a mapping", pipeline_args=call)
    for line, reason in (
        ("height: tall", "height is 'tall'; give a whole number of at least 1"),
        ("num_frames: 0", "num_frames is 0; give a whole number"),
        ("width: [32]", r"width is \[32\]; give a whole number"),
        ("guidance_scale: much", "guidance_scale is 'much'; give a number"),
        ("negative_prompt: 3", "negative_prompt is 3; give text"),
    ):
        call.write_text(line)
        refused(folder, FileError, reason, pipeline_args=call)


def test_levels_that_no_call_can_follow(folder: Path, tmp_path: Path) -> None:
    """Before the pipeline is loaded."""
    levels, recipe = tmp_path / "levels.json", tmp_path / "recipe.json"
    flow = {"sampler": "FlowMatchEulerDiscreteScheduler", "levels": "flow"}
    options = {"pipeline": str(folder), "text_prompt": "a"}
    for values, reason in (
        ([0.0, 0.5, 1.0], "the last level is 0, which has no noise"),
        ([0.5, 0.2, 0.9], "must strictly ascend"),
        ([0.5, 1.2], "entry 1 is 1.2; entries are"),
    ):
        levels.write_text(json.dumps(values))
        for model in (SampleOptions, SearchCacheOptions):
            with pytest.raises(ScheduleError, match=rf"levels\.json: .*{reason}"):
                check_before_launch(model(**options, schedule=levels))
    Recipe(**flow, timesteps=[1000.0, 400.0]).save(recipe)
    with pytest.raises(OptionError, match=r"made for a pipeline with FlowMatch.*with --pipeline"):
        check_before_launch(SampleOptions(text_prompt="a", recipe=recipe))
    recipe.write_text(recipe.read_text().replace("400.0", "0.0"))
    with pytest.raises(RecipeError, match=r"recipe\.json: .*the last level is 0"):
        check_before_launch(SampleOptions(**options, recipe=recipe))
    Recipe(sampler="EulerDiscrete", timesteps=[900.0, 400.0]).save(recipe)
    with pytest.raises(OptionError, match="made for a model of Open-Sora-Plan; leave out"):
        check_before_launch(SampleOptions(**options, recipe=recipe))


def test_levels_that_only_the_loaded_scheduler_refuses(
    run_job: Job, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whole timesteps that fall together are said before sampling, too."""
    pipe, arguments = cogvideox()
    pipe.save_pretrained(tmp_path / "pipeline")
    (tmp_path / "call.yaml").write_text(yaml.safe_dump(arguments))
    (tmp_path / "levels.json").write_text("[0.3001, 0.3002, 0.9]")
    flags = {"pipeline": str(tmp_path / "pipeline"), "pipeline_args": tmp_path / "call.yaml"}
    files = {"schedule": tmp_path / "levels.json", "workdir": tmp_path / "work", "device": "cpu"}
    with pytest.raises(ScheduleError, match="takes whole timesteps"):
        run_job(SampleOptions(**flags, **files, text_prompt="a"))
    assert "sampling" not in "".join(capsys.readouterr())


def test_weights_that_do_not_fill_the_model(folder: Path) -> None:
    """Known when it is loaded, which accelerate does without values for what no file holds."""
    pytest.importorskip("accelerate")
    changed(folder / "transformer" / "config.json", num_layers=3)
    with pytest.raises(CheckpointError, match=r"transformer: no weights for transformer_blocks\.2"):
        open_pipeline(folder)


@pytest.mark.parametrize(
    "flags",
    [
        {"model_path": "a/b"},
        {"sampler": "DDIM"},
        {"noise": "independent"},
        {"ae_path": "a/b"},
        {"tile_overlap_factor": 0.5},
    ],
)
def test_options_that_mean_nothing_to_a_pipeline(flags: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="means nothing to a --pipeline"):
        CalibrateOptions(pipeline="a/b", **flags)


def test_options_of_searches_that_mean_nothing_to_a_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="--method ays: means nothing to a --pipeline"):
        SearchStepsOptions(pipeline="a/b", method="ays")
    with pytest.raises(ValidationError, match="--videos-path: means nothing to a --pipeline"):
        SearchStepsOptions(pipeline="a/b", videos_path=tmp_path)
    with pytest.raises(ValidationError, match="name one with --pipeline"):
        SampleOptions(pipeline_args=tmp_path)


def test_lengths_of_a_pipeline() -> None:
    with pytest.raises(OptionError, match="--steps 8: too few to choose from"):
        check_pipeline(CalibrateOptions(pipeline="a/b", steps=8))
    assert CalibrateOptions(pipeline="a/b", num_frames=7).num_frames == 7  # Mochi's are 6k+1
    with pytest.raises(ValidationError, match="--num-frames 7: must be 4k"):
        CalibrateOptions(num_frames=7)
    assert CalibrateOptions(pipeline="a/b").steps == 50
    assert SampleOptions(pipeline="a/b").steps == 50
    assert SearchCacheOptions(pipeline="a/b").steps == 50
    assert SearchStepsOptions(pipeline="a/b").steps == (25,)
    assert "steps" not in SampleOptions(pipeline="a/b").model_fields_set
    assert SampleOptions().steps == 100


def test_layouts(folder: Path) -> None:
    refused(folder, OptionError, "use dp=2", nproc_per_node=2, parallel="sp=2")


def test_calibrations_of_others(
    folder: Path, original: Path, run_job: Job, tmp_path: Path, model_flags: dict[str, Any]
) -> None:
    work = tmp_path / "work"
    flags = {"pipeline": str(original / "pipeline"), "pipeline_args": original / "call.yaml"}
    run_job(
        CalibrateOptions(
            **flags, workdir=work, text_prompt="a", steps=9, device="cpu", dtype="float32"
        )
    )
    check_before_launch(SearchStepsOptions(**flags, workdir=work))
    changed(folder / "scheduler" / "scheduler_config.json", shift=2.0)
    another = {**flags, "pipeline": str(folder), "workdir": work}
    for model in (SearchStepsOptions, SearchCacheOptions, OptimizeOptions):
        with pytest.raises(CalibrationError, match="calibrated with another pipeline than"):
            check_before_launch(model(**another))
    with pytest.raises(CalibrationError, match="calibrated with a LTXPipeline; name it with"):
        check_before_launch(SearchStepsOptions(workdir=work))
    # Another size: known before, and of a hub id once the pipeline is loaded.
    call = tmp_path / "other.yaml"
    arguments = yaml.safe_load((original / "call.yaml").read_text())
    call.write_text(yaml.safe_dump({**arguments, "num_frames": 1}))
    other = SearchStepsOptions(**{**flags, "pipeline_args": call}, workdir=work, device="cpu")
    for look in (check_before_launch, run_job):
        with pytest.raises(
            CalibrationError, match=r"calibrated with arguments .*, now .*'num_frames': 1"
        ):
            look(other)


def test_the_next_command_calls_the_pipeline_in_the_same_way() -> None:
    """What is printed as the next command reads back, with the same arguments of the call."""
    call: dict[str, Any] = {"height": 32, "guidance_scale": 3.0, "negative_prompt": "no text"}
    made = CalibrateOptions(pipeline="a/b", save_memory=True, offload=True, **call)
    for command in ("search-steps", "search-cache", "optimize", "sample"):
        words = following(made, command)
        options = parse(command, words.removeprefix(f"osp-opt {command}"))
        assert isinstance(options, SamplingOptions)
        assert call_arguments(options) == call
        assert options.save_memory
        assert options.offload
