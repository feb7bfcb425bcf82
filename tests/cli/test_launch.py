"""The whole process tree, for real: outputs, exit codes, signals, no orphans."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAND_IN = Path(__file__).parent / "stand_in"


def start(workdir: Path, order: str, nproc: int = 1, *more: str) -> subprocess.Popen[str]:
    command = [
        *(sys.executable, "-m", "osp_opt", "sample", "--device", "cpu"),
        *("--workdir", str(workdir), "--text-prompt", order, f"--nproc-per-node={nproc}"),
        *more,
    ]
    above = [path for path in [os.environ.get("PYTHONPATH")] if path]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(STAND_IN), *above])},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_until_asleep(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "asleep\n"


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"


def assert_all_end(pids: list[int]) -> None:
    """They must be gone soon; the deadline only bounds a failing test."""
    deadline = time.monotonic() + 60
    while any(map(alive, pids)):
        assert time.monotonic() < deadline, f"orphans: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.05)


def descendants(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [below for child in children for below in (int(child), *descendants(int(child)))]


def test_two_ranks_work_and_only_rank_0_speaks(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, "greet", 2))
    assert (code, err) == (0, "")
    assert "rank 0 of [0, 1] was here" in out
    assert "greeting: 2/2" in out
    assert "rank 1" not in out
    assert "rank 1 of [0, 1] was here" in (tmp_path / "samples/logs/rank1.log").read_text()
    assert (tmp_path / "samples/options.json").exists()


def test_refused_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, "refuse"))
    assert (code, out) == (2, "")
    assert err == "osp-opt: error: schedule s.txt: entry 3 is not a number\n"
    assert "Traceback" in (tmp_path / "samples/logs/rank0.log").read_text()


def test_a_crash_names_rank_cause_and_log(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, "crash on rank 1", 2))
    assert code == 1
    assert err.count("\n") == 1
    for word in ("rank 1", "ZeroDivisionError", "divided by nothing", "rank1.log"):
        assert word in err


@pytest.mark.parametrize("nproc", [1, 2])
def test_a_killed_worker_is_reported(tmp_path: Path, nproc: int) -> None:
    code, _, err = finish(start(tmp_path, "die", nproc))
    assert code == 128 + signal.SIGKILL
    assert err.count("\n") == 1
    assert re.search(r"rank [01] died: killed by SIGKILL", err)


def test_one_process_is_started_directly_and_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from within another job, whose rank and size are not this one's."""
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, _ = finish(start(tmp_path, "greet"))
    assert code == 0
    assert "rank 0 of [0] was here" in out
    assert (tmp_path / "samples/logs/launcher.log").read_text() == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "sleep")
    wait_until_asleep(process)
    below = descendants(process.pid)
    assert int((tmp_path / "samples/pid-0").read_text()) in below
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    assert err.count("\n") == 1
    assert "same command again" in err
    assert_all_end(below)


@pytest.mark.parametrize(("nproc", "processes"), [(1, 1), (2, 3)])
def test_killing_the_launcher_leaves_no_orphan_and_no_lock(
    tmp_path: Path, nproc: int, processes: int
) -> None:
    process = start(tmp_path, "sleep", nproc)
    wait_until_asleep(process)
    below = descendants(process.pid)
    assert len(below) >= processes
    process.kill()
    process.communicate(timeout=300)
    assert_all_end(below)
    code, _, err = finish(start(tmp_path, "sleep", 1, "--seed", "1"))
    assert code == 2, "a run folder was mixed"
    assert "made with seed 42, not 1" in err
