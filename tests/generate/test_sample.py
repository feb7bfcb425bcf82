"""`sample` end to end on random weights: files, manifest, resuming, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Job

from osp_opt.base.artifacts import read_meta, write_meta
from osp_opt.base.errors import OptionError, PolicyError
from osp_opt.base.video import read_image, read_video, write_video
from osp_opt.cache.policy import CachePolicy
from osp_opt.generate.job import requests_of
from osp_opt.options import SampleOptions
from osp_opt.sampling.schedule import TimestepSchedule


def options(flags: dict[str, Any], **more: Any) -> SampleOptions:
    given = {"steps": 5, "text_prompt": ("a red dog", "two blue cats"), **flags, **more}
    return SampleOptions(**given)


def test_one_video_per_prompt_with_manifest_and_grid(
    model_flags: dict[str, Any], run_job: Job
) -> None:
    wanted = options(model_flags, seeds_per_prompt=2, seed=7)
    printed = run_job(wanted)
    folder = wanted.out_dir
    names = [f"{p}-s{s}.mp4" for p in ("a-red-dog", "two-blue-cats") for s in (7, 8)]
    files = [folder / f"{i:03d}-{name}" for i, name in enumerate(names, start=1)]
    assert all(read_video(file).shape == (5, 16, 16, 3) for file in files)
    (take,) = json.loads((folder / "manifest.json").read_text())["takes"]
    assert [entry["file"] for entry in take["videos"]] == [file.name for file in files]
    assert [entry["seed"] for entry in take["videos"]] == [7, 8, 7, 8]
    assert take["setting"]["steps"] == 5
    assert all(entry["denoising_seconds"] > 0 for entry in take["videos"])
    assert read_video(folder / "grid.mp4").shape[0] == 5
    *_, result, following = printed.splitlines()
    assert result.startswith(f"4 videos: {folder / 'grid.mp4'} (denoising ")
    assert following.startswith("next: osp-opt calibrate ")


@pytest.mark.parametrize("flags", [{}, {"model_path": "of/somebody"}], ids=["tiny", "other"])
def test_more_of_the_bundled_prompts_on_demand(flags: dict[str, Any]) -> None:
    four = requests_of(SampleOptions(**flags))
    six = requests_of(SampleOptions(num_prompts=6, **flags))
    assert len({request.prompt for request in six}) == 6
    assert six[:4] == four
    assert requests_of(SampleOptions(num_prompts=1, **flags)) == four[:1]


def test_finished_videos_are_not_made_again(model_flags: dict[str, Any], run_job: Job) -> None:
    wanted = options(model_flags)
    run_job(wanted)
    first, second = sorted(wanted.out_dir.glob("0*.mp4"))
    kept = first.stat().st_mtime_ns
    content = second.read_bytes()
    second.unlink()
    printed = run_job(wanted)
    assert "1 of 2 videos are there already" in printed
    assert first.stat().st_mtime_ns == kept
    assert second.read_bytes() == content, "one seed, one video"


def test_raw_frames_are_what_was_decoded(
    model_flags: dict[str, Any], run_job: Job, tmp_path: Path
) -> None:
    """A folder without them gets them when it is asked for them later."""
    wanted = options(model_flags)
    run_job(wanted)
    assert not list(wanted.out_dir.glob("*.mkv")), "only by request for a model of one's own"
    printed = run_job(options(model_flags, raw=True))
    assert "there already" not in printed
    for entry in json.loads((wanted.out_dir / "manifest.json").read_text())["takes"][0]["videos"]:
        raw = read_video(wanted.out_dir / entry["frames"])
        write_video(tmp_path / "again.mp4", raw, 12.0)
        shown = (wanted.out_dir / entry["file"]).read_bytes()
        assert (tmp_path / "again.mp4").read_bytes() == shown, "the video is made of these frames"
    assert "2 of 2 videos are there already" in run_job(options(model_flags, raw=True))


def test_one_frame_makes_a_png(model_flags: dict[str, Any], run_job: Job) -> None:
    wanted = options(
        model_flags, num_frames=1, allow_untrained_shape=True, text_prompt=("a red dog",)
    )
    printed = run_job(wanted)
    image = wanted.out_dir / "001-a-red-dog-s42.png"
    assert read_image(image).shape == (16, 16, 3)
    assert str(image) in printed


def cache_file(path: Path, setting: dict[str, Any] | None, *fields: int) -> Path:
    CachePolicy.four_field(*fields).save(path)
    if setting is not None:
        write_meta(path, {"setting": setting})
    return path


def test_schedule_and_cache_together(
    model_flags: dict[str, Any], run_job: Job, tmp_path: Path
) -> None:
    schedule = tmp_path / "searched_schedule.txt"
    TimestepSchedule((999.0, 700.0, 420.5, 200.0, 90.0, 10.0)).save(schedule)
    with_schedule = options(model_flags, schedule=schedule, out=tmp_path / "plain")
    printed = run_job(with_schedule)
    assert "no provenance" in printed
    meta = read_meta(next((tmp_path / "plain").glob("001*.mp4")))
    assert meta is not None
    assert meta["setting"]["timesteps"] == [999.0, 700.0, 420.5, 200.0, 90.0, 10.0]
    assert meta["cache"] is None

    cache = cache_file(tmp_path / "cache.json", meta["setting"], 1, 2, 1, 2)
    both = options(model_flags, schedule=schedule, cache=cache, out=tmp_path / "both")
    printed = run_job(both)
    assert "blocks 1..2 every 2 steps from step 1" in printed
    assert f"cache policy {cache}" not in printed
    plain, cached = (read_video(next((tmp_path / n).glob("001*.mp4"))) for n in ("plain", "both"))
    assert plain.shape == cached.shape
    meta = read_meta(next((tmp_path / "both").glob("001*.mp4")))
    assert meta is not None
    assert meta["cache"]["cache_num_blocks"] == 2


def test_what_the_searches_left_is_used_unless_asked_otherwise(
    model_flags: dict[str, Any], run_job: Job, tmp_path: Path
) -> None:
    work = tmp_path / "work"
    flags = {**model_flags, "text_prompt": ("a red dog",)}
    timesteps = (999.0, 700.0, 420.5, 200.0, 90.0)

    def meta(**more: Any) -> tuple[dict[str, Any], str]:
        printed = run_job(SampleOptions(**flags, **more))
        (video,) = (p for p in more["out"].glob("0*.mp4"))
        found = read_meta(video)
        assert found is not None
        return found, printed

    asked = options(flags, text_prompt=("a red dog",), out=tmp_path / "first")
    run_job(asked)
    recorded = read_meta(next(asked.out_dir.glob("0*.mp4")))
    assert recorded is not None
    setting = {**recorded["setting"], "steps": 5, "timesteps": list(timesteps)}
    schedule = work / "search-steps" / "searched_schedule.txt"
    TimestepSchedule(timesteps).save(schedule)
    write_meta(schedule, {"setting": setting})
    cache = cache_file(work / "search-cache" / "dit_cache_config.json", setting, 1, 2, 1, 2)

    found, printed = meta(out=tmp_path / "found")
    assert found["setting"]["timesteps"] == list(timesteps)
    assert found["cache"] == CachePolicy.four_field(1, 2, 1, 2).to_json()
    assert f"using {schedule} and {cache}" in printed
    found, printed = meta(out=tmp_path / "given", schedule=schedule)
    assert found["cache"] is None, "who says something says all"

    # What was made for another setting is not used, and does not stand in the way.
    write_meta(cache, {"setting": {**setting, "guidance_scale": 3.0}})
    found, printed = meta(out=tmp_path / "other")
    assert found["setting"]["timesteps"] == list(timesteps)
    assert found["cache"] is None
    found, printed = meta(out=tmp_path / "plain", plain=True, sampler="EulerDiscrete")
    assert "using" not in printed
    assert found["setting"]["steps"] == 100


def test_a_cache_for_so_many_own_steps_is_used_with_them(
    model_flags: dict[str, Any], run_job: Job, tmp_path: Path
) -> None:
    flags = {**model_flags, "text_prompt": ("a red dog",)}
    asked = SampleOptions(**flags, steps=5, out=tmp_path / "asked")
    run_job(asked)
    setting = (read_meta(next(asked.out_dir.glob("0*.mp4"))) or {})["setting"]
    work = tmp_path / "work"
    cache = cache_file(work / "search-cache" / "dit_cache_config.json", setting, 1, 2, 1, 2)
    printed = run_job(SampleOptions(**flags, out=tmp_path / "found"))
    assert f"using 5 steps and {cache}" in printed
    found = read_meta(next((tmp_path / "found").glob("0*.mp4"))) or {}
    assert found["setting"]["timesteps"] == setting["timesteps"]
    assert found["cache"] == CachePolicy.four_field(1, 2, 1, 2).to_json()

    # Of a cache and a schedule that are not for each other the newer one.
    schedule = work / "search-steps" / "searched_schedule.txt"
    searched = TimestepSchedule((999.0, 700.0, 90.0))
    searched.save(schedule)
    other = {**setting, "steps": 3, "timesteps": list(searched.timesteps)}
    write_meta(schedule, {"setting": other})
    for age, expected in ((-60, 5), (60, 3)):
        when = cache.stat().st_mtime + age
        os.utime(schedule, (when, when))
        out = tmp_path / str(expected)
        run_job(SampleOptions(**flags, out=out))
        found = read_meta(next(out.glob("0*.mp4"))) or {}
        assert found["setting"]["steps"] == expected


def test_a_file_keeps_the_letters_of_its_prompt(model_flags: dict[str, Any], run_job: Job) -> None:
    wanted = options(model_flags, steps=2, text_prompt=("一只红色的狗。在草地上", "Ein Bär_läuft!"))
    run_job(wanted)
    names = sorted(path.stem for path in wanted.out_dir.glob("0*.mp4"))
    assert names == ["001-一只红色的狗-在草地上-s42", "002-ein-bär-läuft-s42"]


def test_a_cache_changes_latents_little_and_an_empty_effect_not_at_all(
    model_flags: dict[str, Any], run_job: Job, tmp_path: Path
) -> None:
    """A policy that reuses at the very last step only is nearest to the uncached video."""
    run_job(options(model_flags, out=tmp_path / "plain"))
    videos = {"plain": read_video(next((tmp_path / "plain").glob("001*.mp4")))}
    for name, fields in (("late", (1, 2, 3, 2)), ("all", (0, 4, 0, 5))):
        cache = cache_file(tmp_path / f"{name}.json", None, *fields)
        run_job(options(model_flags, cache=cache, out=tmp_path / name))
        videos[name] = read_video(next((tmp_path / name).glob("001*.mp4")))
    distance = {
        name: float(np.mean((video.astype(float) - videos["plain"]) ** 2))
        for name, video in videos.items()
    }
    assert distance["late"] < distance["all"]


def test_artifacts_of_another_setting_are_refused(
    model_flags: dict[str, Any], run_job: Job, tmp_path: Path
) -> None:
    run_job(options(model_flags))
    video = next((tmp_path / "work" / "samples").glob("001*.mp4"))
    meta = read_meta(video)
    assert meta is not None
    other_steps = {**meta["setting"], "steps": 9, "timesteps": []}
    cache = cache_file(tmp_path / "cache.json", other_steps, 1, 2, 1, 2)
    with pytest.raises(OptionError, match=r"number of steps \(9, here 5\).*--allow-mismatch"):
        run_job(options(model_flags, cache=cache, out=tmp_path / "a"))
    printed = run_job(options(model_flags, cache=cache, allow_mismatch=True, out=tmp_path / "b"))
    assert "warning: cache policy" in printed
    too_wide = cache_file(tmp_path / "wide.json", None, 2, 3, 1, 2)
    with pytest.raises(PolicyError, match=r"wide\.json: .*beyond the model's 4 blocks"):
        run_job(options(model_flags, cache=too_wide, out=tmp_path / "c"))
    assert not list((tmp_path / "c").glob("*.mp4"))
