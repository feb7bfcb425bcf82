"""The real commands wait for work, however long, and not for a rank that gives no sign of life.

Runs where OSP_OPT_KILLS is set (`make durability`): a video has to take longer than patience lasts.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from launching import run_ranks
from uneven_on_ranks import STEPS, TIMEOUT_S, commands, main

from osp_opt.calibration.statistics import Calibration

pytestmark = pytest.mark.skipif(
    "OSP_OPT_KILLS" not in os.environ, reason="takes minutes; set OSP_OPT_KILLS"
)

PATIENCE_S = 10
GRACE_S = 30  # beyond --timeout, to tell and to end the others


@pytest.fixture(scope="module", params=[2, 4])
def worked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all three commands have run on so many ranks, in one layout, unevenly."""
    workdir = tmp_path_factory.mktemp(f"on-{request.param}")
    run_ranks(main, request.param, workdir, logs=workdir, limit_s=1800)
    return workdir


def test_work_that_takes_several_timeouts_is_waited_for(worked: Path) -> None:
    ranks = len(list(worked.glob("rank*.log")))
    _, steps, cache = commands(worked, ranks)
    parts = [Calibration.load(file) for file in (worked / "calibration/statistics").iterdir()]
    assert len(parts) == ranks + 1
    assert min(part.seconds or 0.0 for part in parts) > 2 * TIMEOUT_S, "one waits for the other"
    assert list(steps.run_dir.glob("*schedule.txt"))
    assert list(cache.run_dir.glob("*.json.meta.json"))


@pytest.mark.parametrize("command", ["calibrate", "search-steps", "search-cache"])
def test_a_stopped_rank_ends_the_command_within_the_timeout(worked: Path, command: str) -> None:
    ranks = len(list(worked.glob("rank*.log")))
    flags = {
        "calibrate": ["--num-prompts", str(4 * ranks), "--steps", str(STEPS), "--no-yardstick"],
        "search-steps": ["--steps", "53", "--verify-prompts", "2"],
        "search-cache": ["--ratio", "1.6", "--steps", str(STEPS), "--verify-prompts", "2"],
    }[command]
    with started(command, worked, ranks, *flags) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "calibrating" in line or "sampling" in line:
                break
        worker = worker_of(process.pid, rank=1)
        assert worker is not None, "ended before it sampled"
        time.sleep(2.0)
        os.kill(worker, signal.SIGSTOP)
        stopped = time.monotonic()
        told, _ = process.communicate(timeout=300)
        assert time.monotonic() - stopped < PATIENCE_S + GRACE_S
    assert process.returncode == 1
    last = told.splitlines()[-1]
    assert last.startswith("osp-opt: error: rank 1: no sign of life for "), told
    assert last.endswith("/logs/rank1.log")
    assert not Path(f"/proc/{worker}").exists()


@contextmanager
def started(
    command: str, workdir: Path, ranks: int, *flags: str
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "osp_opt", command, "--workdir", str(workdir), *flags),
            *("--device", "cpu", "--nproc-per-node", str(ranks), "--timeout", str(PATIENCE_S)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def worker_of(launcher: int, rank: int) -> int | None:
    """The process of that rank below `launcher`."""
    for pid in below(launcher):
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"RANK={rank}".encode() in environment:
            return pid
    return None


def below(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [each for child in children for each in (*below(int(child)), int(child))]
