"""calibrate and search-steps on a random tiny model, job by job in this process."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import CalibrationError, OptionError
from osp_opt.base.progress import Progress
from osp_opt.base.video import write_video
from osp_opt.calibration import Calibration, listing
from osp_opt.calibration import job as calibrate
from osp_opt.calibration import videos as calibration_videos
from osp_opt.options import CalibrateOptions, JobOptions, SearchStepsOptions
from osp_opt.pipelines.maker import Request
from osp_opt.pipelines.open_sora_plan import VideoMaker, recorded_levels
from osp_opt.quality.loss import EXIT_CODES
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps import job as search_steps
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel

STEPS = 12
PROMPTS = ("a red ball rolls away", "two boats at sea")


def context_of(options: JobOptions) -> WorkerContext:
    options.run_dir.mkdir(parents=True, exist_ok=True)
    progress = Progress(interactive=False)
    return WorkerContext(Device.open("cpu"), Parallel(), options.run_dir, progress)


def calibrate_options(checkpoint: Path, workdir: Path) -> CalibrateOptions:
    return CalibrateOptions(
        model_path=str(checkpoint), workdir=workdir, steps=STEPS, text_prompt=PROMPTS
    )


def search(checkpoint: Path, workdir: Path, **values: object) -> SearchStepsOptions:
    options = SearchStepsOptions(model_path=str(checkpoint), workdir=workdir, **values)
    search_steps.run(options, context_of(options))
    return options


@pytest.fixture(scope="module")
def calibrated(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a finished calibration."""
    workdir = tmp_path_factory.mktemp("calibrated")
    options = calibrate_options(tiny_checkpoint, workdir)
    calibrate.run(options, context_of(options))
    return workdir


@pytest.fixture
def workdir(calibrated: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(calibrated, tmp_path / "work")
    return tmp_path / "work"


def test_calibration_holds_statistics_videos_latents_and_manifest(calibrated: Path) -> None:
    folder = calibrated / "calibration"
    calibration = Calibration.load(folder / "calibration.safetensors")
    assert calibration.prompts == PROMPTS
    assert calibration.step_gram.shape == (2, STEPS, STEPS)
    assert calibration.block_gram.shape == (2, STEPS, 4, 5, 5)
    assert np.isfinite(calibration.block_gram[:, 4:]).all()
    manifest = json.loads((folder / "manifest.json").read_text())
    (take,) = manifest["takes"]
    assert take["command"] == "calibrate"
    assert [entry["prompt"] for entry in take["videos"]] == list(PROMPTS)
    for entry in take["videos"]:
        assert (folder / entry["file"]).stat().st_size > 0
        assert load_file(folder / entry["latents"])["latents"].shape == (4, 2, 2, 2)


def test_recording_changed_nothing_and_recorded_the_last_prediction(
    calibrated: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """The last denoised prediction is the result, so the last Gram entry is its mean square."""
    options = calibrate_options(tiny_checkpoint, tmp_path)
    maker = VideoMaker(options, context_of(options))
    schedule = recorded_levels(options.sampler, STEPS)
    plain = maker.denoise(Request(PROMPTS[1], options.seed), schedule).latents[0]
    folder = calibrated / "calibration"
    entry = json.loads((folder / "manifest.json").read_text())["takes"][0]["videos"][1]
    assert torch.equal(plain, load_file(folder / entry["latents"])["latents"])
    gram = Calibration.load(folder / "calibration.safetensors").step_gram[1]
    assert gram[-1, -1] == pytest.approx(plain.double().square().mean().item(), rel=1e-6)


def finished(folder: Path) -> tuple[bytes, str]:
    """What a calibration leaves, without times."""
    manifest = (folder / "manifest.json").read_text()
    times = re.compile(r'"recorded_in_seconds": [\d.]+')
    return (folder / "calibration.safetensors").read_bytes(), times.sub("", manifest)


def test_calibrate_resumes_and_ends_with_the_same_files(
    workdir: Path, tiny_checkpoint: Path
) -> None:
    folder = workdir / "calibration"
    before = finished(folder)
    kept, damaged = sorted((folder / "statistics").iterdir())
    stamp = kept.stat().st_mtime_ns
    damaged.write_bytes(damaged.read_bytes()[:-7])
    (folder / "calibration.safetensors").unlink()
    options = calibrate_options(tiny_checkpoint, workdir)
    calibrate.run(options, context_of(options))
    assert kept.stat().st_mtime_ns == stamp
    assert finished(folder) == before


def test_search_decides_verifies_and_resumes(workdir: Path, tiny_checkpoint: Path) -> None:
    values = {"steps": "5", "verify": True, "verify_prompts": 2, "budget": 4.0}
    values["text_prompt"] = (
        "a cat",
        "a dog",
        "a red circle moves left on a black background",
        "a green square stays still on a white background",
    )
    options = search(tiny_checkpoint, workdir, **values)
    stored = json.loads(options.schedule_path.read_text())
    assert (len(stored), stored[0], stored[-1]) == (5, 0.0, 0.999)
    assert stored == sorted(stored)
    meta = read_meta(options.schedule_path)
    assert meta is not None
    assert meta["setting"]["steps"] == 5
    assert {row["origin"] for row in meta["search"]["race"]} >= {"uniform", "klub(c=0.5)"}
    verification = meta["search"]["verification"]
    assert len(verification["videos"]) == 2
    assert verification["searched"]["loss"]["measure"] == "SSIM"
    assert verification["searched"]["speedup"]["count"] == 2
    for video in verification["videos"]:
        assert {"psnr", "ssim", "right_before", "mse"} <= set(video["searched"])
        assert video["searched"]["right"] in range(5)
    raced = {prompt for row in meta["search"]["race"] for prompt in row["errors"]}
    assert raced.isdisjoint({video["prompt"] for video in verification["videos"]} | set(PROMPTS))
    if meta["search"]["shown_better_than_plain"]:
        assert meta["search"]["log_fresh_error_over_plain"]["high"] < 0
    curve = json.loads((options.run_dir / "curve.json").read_text())
    (point,) = [p for p in curve["points"] if (p["schedule"], p["kind"]) == ("plain", "verified")]
    errors = [video["plain"]["mse"] for video in verification["videos"]]
    assert point["error"] == pytest.approx(np.sqrt(errors[0] * errors[1]))
    assert curve["predictions_scaled_to_plain"]
    predicted = {
        p["steps"]: p["error"]
        for p in curve["points"]
        if (p["schedule"], p["kind"]) == ("plain", "predicted")
    }
    assert predicted[5] == pytest.approx(point["error"]), "scaled to agree where it was measured"
    assert predicted[10] < predicted[5]

    ledger = options.run_dir / "trials.jsonl"
    written, measured = options.schedule_path.read_bytes(), ledger.read_bytes()
    options.schedule_path.unlink()
    search(tiny_checkpoint, workdir, **values)
    assert options.schedule_path.read_bytes() == written
    assert ledger.read_bytes() == measured


def test_without_sampling_the_curve_is_prediction_only(workdir: Path) -> None:
    options = search(workdir / "no-such-model", workdir, steps="6", verify=False)
    curve = json.loads((options.run_dir / "curve.json").read_text())
    assert {p["kind"] for p in curve["points"]} == {"predicted"}
    assert not curve["predictions_scaled_to_plain"]


def test_table_alone_needs_no_model(workdir: Path) -> None:
    options = search(workdir / "no-such-model", workdir, steps="3,6", verify=False)
    for steps in (3, 6):
        path = options.schedule_path.with_name(f"searched_schedule-{steps}.txt")
        assert len(TimestepSchedule.from_file(path)) == steps
    first = options.schedule_path.with_name("searched_schedule-3.txt")
    assert options.schedule_path.read_bytes() == first.read_bytes()
    rows = json.loads((options.run_dir / "table.json").read_text())
    assert [row["steps"] for row in rows] == [3, 6]
    assert all(row["log_predicted_error_over_plain"]["estimate"] <= 0 for row in rows)


def test_all_lengths_at_once(workdir: Path, tiny_checkpoint: Path) -> None:
    options = search(tiny_checkpoint, workdir, all_steps=True)
    lengths = [row["steps"] for row in json.loads((options.run_dir / "table.json").read_text())]
    assert lengths == list(range(2, STEPS))


def test_as_many_steps_as_the_original_are_uniform(workdir: Path, tiny_checkpoint: Path) -> None:
    options = search(tiny_checkpoint, workdir, steps=str(STEPS), verify=False)
    found = TimestepSchedule.from_file(options.schedule_path)
    np.testing.assert_allclose(found.timesteps, TimestepSchedule.uniform(STEPS).timesteps)


def test_align_your_steps_runs_on_the_calibrated_videos_and_resumes(
    workdir: Path, tiny_checkpoint: Path
) -> None:
    values = {"steps": "4", "method": "ays", "candidates": 3, "monte_carlo_iters": 2}
    options = search(tiny_checkpoint, workdir, verify=False, force=True, **values)
    found = TimestepSchedule.from_file(options.schedule_path)
    assert (len(found), found.timesteps[0], found.timesteps[-1]) == (4, 999.0, 0.0)
    evaluations = (options.run_dir / "evaluations.jsonl").read_bytes()
    assert evaluations.count(b"\n") > 10
    written = options.schedule_path.read_bytes()
    search(tiny_checkpoint, workdir, verify=False, force=True, **values)
    assert (options.run_dir / "evaluations.jsonl").read_bytes() == evaluations
    assert options.schedule_path.read_bytes() == written

    lines = evaluations.splitlines(keepends=True)
    kept = b"".join(lines[: len(lines) // 2])
    (options.run_dir / "evaluations.jsonl").write_bytes(kept + lines[-1][:7])  # killed in between
    search(tiny_checkpoint, workdir, verify=False, force=True, **values)
    assert (options.run_dir / "evaluations.jsonl").read_bytes() == evaluations
    assert options.schedule_path.read_bytes() == written


def test_without_guidance_other_predictions_are_evaluated(
    workdir: Path, tiny_checkpoint: Path
) -> None:
    values = {"steps": "3", "method": "ays", "candidates": 2, "monte_carlo_iters": 1}
    costs = []
    for guided in (True, False):
        options = search(
            tiny_checkpoint, workdir, verify=False, force=True, guided=guided, **values
        )
        ledger = options.run_dir / "evaluations.jsonl"
        first = json.loads(ledger.read_text().splitlines()[0])
        assert first["key"]["of"].endswith(" guided") == guided
        costs.append(first["values"]["klub"])
        ledger.unlink()
    assert costs[0] != pytest.approx(costs[1], rel=1e-3)


def test_another_model_is_refused(workdir: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CalibrationError, match="another model"):
        search(other, workdir, verify=True)


def test_samplers_without_schedules_are_refused(workdir: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="PNDM: takes no schedule; use one of EulerAncestralDisc"):
        search(tiny_checkpoint, workdir, sampler="PNDM")
    with pytest.raises(OptionError, match="EulerDiscrete"):
        recorded_levels("HeunDiscrete", 10)


def test_loss_limit_finds_the_fewest_steps(workdir: Path, tiny_checkpoint: Path) -> None:
    """So much may be lost that the shortest length of the ladder serves."""
    options = search(
        tiny_checkpoint, workdir, max_loss="99%", verify=True, verify_prompts=6, budget=2.0
    )
    found = TimestepSchedule.from_file(options.schedule_path)
    assert len(found) == search_steps.LADDER[0]


def test_a_loss_that_is_not_shown_is_told_and_has_an_exit_code(
    workdir: Path, tiny_checkpoint: Path
) -> None:
    values = {"max_loss": "0.0001%", "verify_prompts": 1, "budget": 2.0}
    options = SearchStepsOptions(model_path=str(tiny_checkpoint), workdir=workdir, **values)
    assert search_steps.run(options, context_of(options)) == EXIT_CODES["undecided"]
    assert len(TimestepSchedule.from_file(options.schedule_path)) == 10, "the most careful length"


@pytest.mark.parametrize("more", [{"verify": False}, {"steps": "20"}, {"all_steps": True}])
def test_a_loss_limit_that_contradicts_is_refused(more: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="--max-loss"):
        SearchStepsOptions(max_loss="1%", **more)


def make_videos(folder: Path, count: int, frames: int = 7, size: int = 16) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    write_video(
        folder / "v0.mp4", rng.integers(0, 255, (frames, size, size, 3), dtype=np.uint8), 12
    )
    for number in range(1, count):
        shutil.copyfile(folder / "v0.mp4", folder / f"v{number}.mp4")
    return folder


def test_plain_folder_of_videos_serves_as_calibration(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_videos, "LEVELS", 6)
    monkeypatch.setattr(listing, "MIN_VIDEOS", 2)
    videos = make_videos(tmp_path / "videos", 2)
    options = search(
        tiny_checkpoint, tmp_path, videos_path=videos, steps="4", verify=False, force=True
    )
    assert len(TimestepSchedule.from_file(options.schedule_path)) == 4
    statistics = sorted((options.run_dir / "statistics").iterdir())
    stamps = [path.stat().st_mtime_ns for path in statistics]
    search(tiny_checkpoint, tmp_path, videos_path=videos, steps="4", verify=False, force=True)
    assert [path.stat().st_mtime_ns for path in statistics] == stamps
    descent = {"method": "ays", "candidates": 2, "monte_carlo_iters": 1, "steps": "3"}
    options = search(
        tiny_checkpoint, tmp_path, videos_path=videos, verify=False, force=True, **descent
    )
    beside = options.schedule_path.with_name("searched_schedule-3.txt")
    assert len(TimestepSchedule.from_file(beside)) == 3
    assert len(TimestepSchedule.from_file(options.schedule_path)) == 4


@pytest.mark.parametrize(
    ("count", "frames", "size", "message"),
    [
        (4, 5, 16, "4 videos; give 5 to 20"),
        (5, 4, 16, r"v0\.mp4: 4 frames, 5"),
        (5, 5, 32, r"v0\.mp4: 32x32 pixels, 16x16.*--resize"),
    ],
)
def test_videos_that_do_not_serve_are_named(
    tiny_checkpoint: Path, tmp_path: Path, count: int, frames: int, size: int, message: str
) -> None:
    videos = make_videos(tmp_path / "videos", count, frames, size)
    with pytest.raises(CalibrationError, match=message):
        search(tiny_checkpoint, tmp_path, videos_path=videos, verify=False)


def test_broken_video_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    videos = make_videos(tmp_path / "videos", 5)
    (videos / "v3.mp4").write_bytes(b"not a video")
    with pytest.raises(CalibrationError, match=r"v3\.mp4"):
        search(tiny_checkpoint, tmp_path, videos_path=videos, verify=False)
