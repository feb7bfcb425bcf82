"""Line 2 on a folder that the reference tool wrote, prompts given one by one."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

from forked import Server
from official import FEWER, PROMPTS, Walk, write_checkpoint

from osp_opt.base.video import read_video, write_grid
from osp_opt.generate.manifest import read_takes


def test_videos_of_the_reference_tool_with_its_overview(
    tmp_path: Path, free_port: int, server: Server
) -> None:
    """Numbered videos beside the grid of all: the grid is no video, and 10 comes after 2."""
    model = write_checkpoint(tmp_path / "model")
    walk = Walk(tmp_path / "walk", model, free_port, prompts=shlex.join(PROMPTS))
    walk.run_forked(server, "videos")
    (take,) = read_takes(walk.videos)
    assert [video.prompt for video in take.videos] == list(PROMPTS)
    theirs = walk.folder / "theirs"
    theirs.mkdir()
    for number, video in zip((1, 2, 3, 10, 11), take.videos, strict=True):
        name = f"EulerAncestralDiscrete_{number}_29x480p_gs7.5_s100.mp4"
        shutil.copyfile(video.path, theirs / name)
    tiles = [read_video(video.path) for video in take.videos]
    write_grid(theirs / "EulerAncestralDiscrete_gs7.5_s100.mp4", tiles, 24)
    walk.known["videos"] = "theirs/"
    told = walk.run_forked(server, "steps")
    assert "calibrating on 5 videos" in told
    latents = json.loads(
        (walk.folder / "osp-opt-work" / "search-steps" / "latents.json").read_text()
    )
    numbers = [Path(entry["latents"]).stem.split("_")[1] for entry in latents["videos"]]
    assert numbers == ["1", "2", "3", "10", "11"]
    assert [entry["prompt"] for entry in latents["videos"]] == list(PROMPTS)
    schedule = json.loads((walk.folder / "schedule" / "searched_schedule.txt").read_text())
    assert len(schedule) == FEWER
