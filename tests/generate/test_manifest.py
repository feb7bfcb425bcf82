"""Which files of a folder are videos, and how they were made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from osp_opt.base.artifacts import write_meta
from osp_opt.base.errors import FileError
from osp_opt.base.video import write_grid, write_video
from osp_opt.generate.manifest import (
    add_take,
    free_path,
    open_take,
    original_of,
    read_takes,
    take_label,
)
from osp_opt.sampling.schedule import TimestepSchedule

SIZE = (48, 32)  # height, width


def settings(steps: int, **values: object) -> dict[str, object]:
    timesteps = list(TimestepSchedule.uniform(steps).timesteps)
    return {"command": "sample", "setting": {"timesteps": timesteps}, "cache": None, **values}


def clip(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 255, (3, *SIZE, 3), dtype=np.uint8)


def write(folder: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        write_video(folder / name, clip(seed), 8)


@pytest.mark.parametrize(
    "names",
    [
        [f"EulerAncestralDiscrete_{i}_model_gs7.5_s100.mp4" for i in range(12)],
        [f"{i}.mp4" for i in range(1, 12)],
        ["a_cat_runs.mp4", "two_boats_at_sea.mp4", "snow.mp4", "sample_a.mp4", "z.mp4"],
    ],
)
@pytest.mark.parametrize("gap", [0, 2])
def test_a_folder_of_the_reference_tool(tmp_path: Path, names: list[str], gap: int) -> None:
    """Its videos in the order of their numbers, without the overview of all of them."""
    write(tmp_path, *names)
    tiles = [clip(seed) for seed in range(len(names))]
    sheet = np.concatenate(tiles[:3], axis=2) if gap == 0 else None
    overview = tmp_path / "EulerAncestralDiscrete_gs7.5_s100.mp4"
    if sheet is None:
        write_grid(overview, tiles, 8)
    else:
        rows = -(-len(tiles) // 3)
        write_video(overview, np.concatenate([sheet] * rows, axis=1), 8)
    write_video(tmp_path / ".hidden.mp4", clip(0), 8)
    (tmp_path / "._0.mp4").write_bytes(b"\0\5\x16\7")
    (take,) = read_takes(tmp_path)
    found = [video.path.name for video in take.videos]
    assert sorted(found) == sorted(names)
    if names[0][0].isdigit() or names[0].startswith("Euler"):
        assert found == names, "2 comes before 10"


def test_another_size_alone_makes_no_overview(tmp_path: Path) -> None:
    """A larger video that no tiling explains is a video; whoever reads it says what is wrong."""
    write(tmp_path, *(f"{i}.mp4" for i in range(6)))
    write_video(tmp_path / "6.mp4", np.zeros((3, 80, 80, 3), dtype=np.uint8), 8)
    (take,) = read_takes(tmp_path)
    assert len(take.videos) == 7


def test_takes_join_one_folder(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4", "b.mp4", "c.mp4", "d.mp4")
    searched = settings(4)
    searched["setting"] = {"timesteps": [999.0, 700.0, 200.0, 0.0]}
    add_take(tmp_path, settings(8), [{"file": "a.mp4", "prompt": "x", "seed": 1}])
    add_take(tmp_path, searched, [{"file": "b.mp4", "prompt": "x", "seed": 1}])
    add_take(tmp_path, settings(8, cache={}), [{"file": "c.mp4", "prompt": "x", "seed": 1}])
    add_take(tmp_path, settings(8), [{"file": "d.mp4", "prompt": "y", "seed": 2}])
    takes = read_takes(tmp_path)
    assert [take.label for take in takes] == ["8steps", "4steps-searched", "8steps-cached"]
    assert [[v.prompt for v in take.videos] for take in takes] == [["x", "y"], ["x"], ["x"]]
    assert original_of(takes) == takes[0] == open_take(tmp_path, "--reference")
    assert open_take(tmp_path / "4steps-searched", "--candidate", takes[0]) == takes[1]
    with pytest.raises(FileError, match=r"--candidate .*made in 2 ways.*4steps-searched.*cached"):
        open_take(tmp_path, "--candidate", takes[0])
    (tmp_path / "c.mp4").unlink()
    add_take(tmp_path, settings(8), [{"file": "a.mp4", "prompt": "x", "seed": 1}])
    again = read_takes(tmp_path)
    assert [take.label for take in again] == ["8steps", "4steps-searched"], "what is gone leaves"
    assert open_take(tmp_path, "--candidate", again[0]) == again[1]


def test_a_manifest_of_an_earlier_version_is_one_take(tmp_path: Path) -> None:
    write(tmp_path, "a.mp4")
    entry = {"file": "a.mp4", "prompt": "x", "seed": 1}
    (tmp_path / "manifest.json").write_text(json.dumps({**settings(8), "videos": [entry]}))
    (take,) = read_takes(tmp_path)
    assert (take.label, take.videos[0].prompt, take.is_uniform) == ("", "x", True)


def test_a_name_is_taken_by_what_was_made_otherwise(tmp_path: Path) -> None:
    one, other, third = settings(8), settings(6), settings(6, noise="independent")
    place = free_path(tmp_path, "001-x", ".mp4", one)
    assert place == tmp_path / "001-x.mp4"
    place.touch()
    write_meta(place, {**one, "denoising_seconds": 1.0})
    assert free_path(tmp_path, "001-x", ".mp4", one) == place
    beside = free_path(tmp_path, "001-x", ".mp4", other)
    assert beside == tmp_path / f"001-x-{take_label(other)}.mp4"
    write_meta(beside, other)
    last = free_path(tmp_path, "001-x", ".mp4", third)
    assert last not in (place, beside)
    write_meta(last, third)
    assert free_path(tmp_path, "001-x", ".mp4", third) == last
    cached = free_path(tmp_path, "002-x", ".mp4", settings(8, cache={}))
    assert cached.name == "002-x-8steps-cached.mp4", "never under the name of the plain one"
