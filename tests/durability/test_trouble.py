"""Full disks, files that go away, Ctrl-C: a clear error, and earlier results intact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from forked import Server
from tiny_jobs import job

from osp_opt.base.video import write_video
from osp_opt.options import CalibrateOptions

TOO_SMALL = 3_000  # bytes: less than the statistics of a video, more than the video
POLL_S = 0.005


def calibrate(flags: dict[str, Any], workdir: Path, prompts: int) -> CalibrateOptions:
    names = ("a red ball", "two boats", "a kite", "a slow train", "an old clock", "one cloud")
    return CalibrateOptions(**flags, workdir=workdir, steps=6, text_prompt=names[:prompts])


def test_a_disk_that_is_full_midway(server: Server, flags: dict[str, Any], tmp_path: Path) -> None:
    options = calibrate(flags, tmp_path, 2)
    full = server.run(options, limit_bytes=TOO_SMALL)
    assert full.code == 2, full
    assert full.err.count("\n") == 1
    assert "statistics/001-a-red-ball.safetensors: cannot be written (File too large)" in full.err
    assert not list(tmp_path.rglob(".*.part*"))
    done = server.run(options)
    assert done.code == 0, done
    kept = {path: path.read_bytes() for path in options.out_dir.rglob("*.safetensors")}
    assert len(kept) == 5
    again = server.run(options, limit_bytes=TOO_SMALL)  # makes the joined file only
    assert again.code == 2, again
    assert "calibration.safetensors: cannot be written (File too large)" in again.err
    assert {path: path.read_bytes() for path in kept} == kept
    assert server.run(options).code == 0


def test_a_video_that_is_deleted_midway(
    server: Server, flags: dict[str, Any], tmp_path: Path
) -> None:
    options = calibrate(flags, tmp_path, 6)
    videos = options.out_dir / "videos"
    with server.started(options) as process:
        while not (found := list(videos.glob("001-*.mp4"))):
            assert process.is_alive(), server.ended(process.exitcode)
            time.sleep(POLL_S)
        (lost,) = found
        lost.unlink()
        process.join()
        ended = server.ended(process.exitcode)
    assert ended.code == 2, ended
    assert ended.err.count("\n") == 1
    assert "001-a-red-ball.safetensors: gone or damaged; run calibrate again" in ended.err
    kept = {path: path.stat().st_mtime_ns for path in videos.glob("*.mp4")}
    assert len(kept) == 5
    assert server.run(options).code == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert lost.exists()


def test_an_evaluation_that_is_interrupted_says_how_to_go_on(tmp_path: Path) -> None:
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    for folder in ("a", "b"):
        write_video(tmp_path / folder / "v.mp4", frames, 12)
    slow = tmp_path / "slow-vbench"
    slow.write_text('#!/bin/sh\necho $$ > "$(dirname "$0")/pid"\nexec sleep 600\n')
    slow.chmod(0o755)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "osp_opt", "evaluate", "--workdir", str(tmp_path / "work")),
            *("--reference", str(tmp_path / "a"), "--candidate", str(tmp_path / "b")),
            *("--no-lpips", "--vbench-python", str(slow)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None, process.communicate()
        time.sleep(POLL_S)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGINT
    assert err.strip().splitlines() == ["osp-opt: stopped; run the same command again to go on"]
    assert not (tmp_path / "work" / "evaluate" / "evaluation.json").exists()


def test_the_jobs_are_those_of_the_killed(flags: dict[str, Any], tmp_path: Path) -> None:
    """Guards the table in conftest: every command that does work is killed in a test."""
    from osp_opt.options import COMMANDS

    # Not optimize: what it tries follows from the clock, so that two runs cannot be compared.
    working = set(COMMANDS) - {"doctor", "export", "optimize", "report"}
    assert {job(command, flags, tmp_path).command for command in working} == working
