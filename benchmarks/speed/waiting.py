"""How OpenMP's threads wait: by GNU's default, asleep, or as osp-opt lets them; alone and not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from osp_opt.generate.manifest import read_takes

# An empty value is GNU's default, and keeps osp-opt from setting its own.
POLICIES = {
    "default": {"OMP_WAIT_POLICY": ""},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "osp-opt": {},
}
VIDEOS = 3
BUSY = "while True: pass"


def run(repeats: int) -> dict[str, Any]:
    """Seconds of denoising a video of 20 steps, by load and policy; policies take turns."""
    found: dict[str, dict[str, list[float]]] = {}
    for load in (0, len(os.sched_getaffinity(0))):
        with busy(load):
            times: dict[str, list[float]] = {policy: [] for policy in POLICIES}
            for _ in range(repeats):
                for policy in POLICIES:
                    times[policy] += seconds(policy)
        found[f"{load} other processes"] = times
    return {"cores": len(os.sched_getaffinity(0)), "seconds": found}


def seconds(policy: str) -> list[float]:
    """Of denoising each of a few videos in one process."""
    environment = {**os.environ, **POLICIES[policy]}
    with tempfile.TemporaryDirectory() as folder:
        line = ["sample", "--device", "cpu", "--steps", "20", "--num-prompts", str(VIDEOS)]
        done = subprocess.run(
            [sys.executable, "-m", "osp_opt", *line, "--no-raw", "--out", folder],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{json.dumps(line)}: {done.stderr}")
        (take,) = read_takes(Path(folder))
        return [video.seconds or 0.0 for video in take.videos]


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute, for as long as the block lasts."""
    processes = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
