"""The reference tool's documented workflow, line by line, as a user types it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import official
import pytest
from official import FEWER, LINES, PROMPTS, STEPS, documented_line

from osp_opt.base.video import read_video
from osp_opt.generate.manifest import Take, read_takes
from osp_opt.sampling.schedule import TimestepSchedule


class Walk:
    """A folder in which the lines are run."""

    def __init__(self, folder: Path, model: Path, port: int, **variation: Any) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        self.folder = folder
        self.known = {"model": model, "port": port, **variation}

    def run(self, name: str) -> str:
        """Run a line to its end; what it printed."""
        process = official.start(documented_line(name, **self.known), self.folder)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, (name, out, err)
        return out + err

    def run_all(self) -> None:
        for name in LINES:
            self.run(name)

    @property
    def videos(self) -> Path:
        return self.folder / self.known.get("videos", "sample_video_test")


def assert_promised(walk: Walk) -> None:
    """What the reference tool's documentation says that the lines leave."""
    schedule = json.loads((walk.folder / "schedule" / "searched_schedule.txt").read_text())
    assert (len(schedule), schedule[0], schedule[-1]) == (FEWER, 0.0, 0.999)
    assert schedule == sorted(schedule)
    cache = json.loads((walk.folder / "cache_config" / "dit_cache_config.json").read_text())
    fields = ("cache_block_start", "cache_num_blocks", "cache_step_start", "cache_step_interval")
    assert sorted(cache) == sorted(fields)
    assert all(type(value) is int for value in cache.values())
    takes = read_takes(walk.videos)
    assert [prompts_of(take) for take in takes] == [list(PROMPTS)] * 3
    assert len({video.path for take in takes for video in take.videos}) == 3 * len(PROMPTS)
    plain, searched, cached = sorted(takes, key=lambda take: (len(take.timesteps), take.label))
    plain, searched, cached = by_kind(takes)
    assert (len(plain.timesteps), len(searched.timesteps)) == (STEPS, FEWER)
    found = TimestepSchedule(tuple(1000 * value for value in reversed(schedule)))
    assert searched.timesteps == pytest.approx(list(found.timesteps), abs=1e-3)
    assert cached.settings is not None
    assert cached.settings["cache"] == cache
    for take in takes:
        for video in take.videos:
            assert read_video(video.path).shape == (5, 16, 16, 3)


def by_kind(takes: Iterable[Take]) -> tuple[Take, Take, Take]:
    """Uncached full length, fewer steps, cached."""
    cached = [take for take in takes if (take.settings or {}).get("cache")]
    fewer = [take for take in takes if len(take.timesteps) == FEWER]
    plain = [take for take in takes if take not in (*cached, *fewer)]
    return plain[0], fewer[0], cached[0]


def prompts_of(take: Take) -> list[str | None]:
    return [video.prompt for video in take.videos]


def files_of(walk: Walk) -> dict[str, tuple[int, bytes]]:
    """Time and content of every video and result of a walk."""
    found = {}
    for path in sorted(walk.folder.rglob("*")):
        if path.suffix in (".mp4", ".txt", ".safetensors") or path.name == "dit_cache_config.json":
            name = path.relative_to(walk.folder).as_posix()
            found[name] = path.stat().st_mtime_ns, path.read_bytes()
    return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return official.write_checkpoint(tmp_path_factory.mktemp("official"))


def test_five_lines_and_again(model: Path, tmp_path: Path, free_port: int) -> None:
    """In an empty folder; a second time nothing is sampled again."""
    walk = Walk(tmp_path / "walk", model, free_port)
    told = {name: walk.run(name) for name in LINES}
    assert_promised(walk)
    assert "calibrated on" in told["steps"], "prompts of line 1 decide with other seeds"
    assert "no calibration" in told["cache"], "says that it makes one, and what that costs"
    assert f"{STEPS} steps with the original model" not in told["steps"]
    assert f"--steps {STEPS} is not used" in told["faster videos"]
    before = files_of(walk)
    again = {name: walk.run(name) for name in LINES}
    assert_promised(walk)
    videos = [name for name in before if name.startswith("sample_video_test/0")]
    assert len(videos) == 3 * len(PROMPTS)
    after = files_of(walk)
    assert {name: after[name] for name in videos} == {name: before[name] for name in videos}
    assert "5 of 5 videos are there already" in again["videos"]
    assert {name: data for name, (_, data) in after.items()} == {
        name: data for name, (_, data) in before.items()
    }


def test_calibrate_makes_the_videos_on_two_processes_in_a_folder_with_a_space(
    model: Path, tmp_path: Path, free_port: int
) -> None:
    """Both searches find what line 1 recorded, wherever it was told to put it."""
    walk = Walk(
        tmp_path / "walk",
        model,
        free_port,
        first="calibrate",
        processes=2,
        videos="my videos/",
    )
    told = {name: walk.run(name) for name in LINES}
    assert_promised(walk)
    assert "no calibration" not in told["cache"]
    assert str(walk.videos) in told["cache"]
    assert not (walk.folder / "osp-opt-work" / "calibration").exists()


def test_a_line_that_is_killed_goes_on(model: Path, tmp_path: Path, free_port: int) -> None:
    """Every line is killed once its work has begun, and then run again."""
    walk = Walk(tmp_path / "walk", model, free_port)
    begun = {
        "videos": "denoised",
        "steps": "sampling candidate",
        "faster videos": "denoised",
        "cache": "denoised",
        "cached videos": "denoised",
    }
    for name in LINES:
        process = official.start(documented_line(name, **walk.known), walk.folder)
        assert process.stdout is not None
        for line in process.stdout:
            if begun[name] in line:
                break
        os.killpg(process.pid, 9)
        process.communicate()
        walk.run(name)
    assert_promised(walk)
