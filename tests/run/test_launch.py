"""The whole process tree, for real: outputs, exit codes, signals, no orphans."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

STAND_IN = Path(__file__).parent / "stand_in"
STATE = "samples/.osp-opt/sample"


def start(
    workdir: Path,
    order: str,
    nproc: int = 1,
    *more: str,
    under: tuple[str, ...] = (),
    python: tuple[str, ...] = (),
) -> subprocess.Popen[str]:
    command = [
        *(*under, sys.executable, *python),
        *("-m", "osp_opt", "sample", "--device", "cpu"),
        *("--workdir", str(workdir), "--text-prompt", order, f"--nproc-per-node={nproc}"),
        *more,
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(STAND_IN)},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=300)
    return process.returncode, out, without_notes(err)


def without_notes(err: str) -> str:
    """Stderr; our orders are no prompts that the bundled model knows."""
    return "".join(line for line in err.splitlines(True) if not line.startswith("note: the bund"))


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


def test_two_ranks_work_and_only_rank_0_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")  # as some set it for all of their programs
    code, out, err = finish(start(tmp_path, "greet", 2))
    assert (code, err) == (0, "")
    assert "rank 0 of [0, 1] was here" in out
    assert out.count("greeting (2)") == 1
    assert "rank 1" not in out
    assert "rank 1 of [0, 1] was here" in (tmp_path / STATE / "logs/rank1.log").read_text()
    assert (tmp_path / STATE / "options.json").exists()


@pytest.fixture(params=["master", "c10d"])
def meeting(request: pytest.FixtureRequest, free_port: int) -> tuple[str, ...]:
    """Options of two machines, which here are one."""
    if request.param == "master":
        return ("--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port))
    return ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port}")


def test_a_machine_that_stays_alone(tmp_path: Path, meeting: tuple[str, ...]) -> None:
    code, out, err = finish(start(tmp_path, "greet", 1, *meeting, "--timeout", "5"))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "did not meet within --timeout" in err
    assert f"{tmp_path}/{STATE}/logs/launcher.log" in err


def test_two_machines_on_one_folder(tmp_path: Path, meeting: tuple[str, ...]) -> None:
    launchers = [
        start(tmp_path, "greet", 1, *meeting, "--node-rank", str(node)) for node in range(2)
    ]
    ended = [finish(launcher) for launcher in launchers]
    assert [(code, err) for code, _, err in ended] == [(0, ""), (0, "")]
    # c10d numbers the machines as they come.
    assert sorted("rank 0 of [0, 1] was here" in out for _, out, _ in ended) == [False, True]
    assert "rank 1 of [0, 1] was here" in (tmp_path / STATE / "logs/rank1.log").read_text()


def test_refused_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, "refuse"))
    assert (code, out) == (2, "")
    assert err == "osp-opt: error: schedule s.txt: entry 3 is not a number\n"
    assert list(tmp_path.iterdir()) == [], "a refused run leaves nothing"
    code, _, err = finish(start(tmp_path, "refuse", 1, "--debug"))
    assert code == 2
    assert "Traceback" in err


def test_a_crash_names_rank_cause_and_log(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, "crash on rank 1", 2))
    assert code == 1
    assert err.count("\n") == 1
    for word in ("rank 1", "ZeroDivisionError", "divided by nothing", "rank1.log"):
        assert word in err


def test_a_killed_worker_is_reported(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, "die"))
    assert code == 128 + signal.SIGKILL
    assert err.count("\n") == 1
    assert "rank 0 died: killed by SIGKILL" in err


def test_a_rank_that_is_killed_is_named_not_those_that_wait_for_it(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, "die on rank 1", 2))
    assert code == 128 + signal.SIGKILL
    assert err.count("\n") == 1
    assert "rank 1 died: killed by SIGKILL" in err
    assert "rank1.log" in err


def test_a_rank_that_hangs_ends_the_job_after_the_timeout(tmp_path: Path) -> None:
    process = start(tmp_path, "hang on rank 1", 2, "--timeout", "15")
    code, _, err = finish(process)
    assert code == 1
    assert err.count("\n") == 1
    for words in ("rank 1: no sign of life", "gathering of results", "rank1.log"):
        assert words in err
    assert_all_end([int((tmp_path / STATE / f"pid-{rank}").read_text()) for rank in range(2)])


def test_work_may_take_several_timeouts(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, "work on rank 1", 2, "--timeout", "10"))
    assert (code, err) == (0, "")
    assert "[0, 1]" in out


def test_a_rank_that_is_stopped_is_named(tmp_path: Path) -> None:
    """Some of the others wait for its tensors, some for its results, and some for those."""
    layout = ("--parallel", "dp=2,sp=2", "--timeout", "20")
    code, _, err = finish(start(tmp_path, "stop on rank 1", 4, *layout))
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("osp-opt: error: rank 1: no sign of life for ")
    assert err.endswith("/logs/rank1.log\n")
    assert "memory" not in err
    assert_all_end([int((tmp_path / STATE / f"pid-{rank}").read_text()) for rank in range(4)])


def test_out_of_memory_says_what_helps(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, "use up the memory"))
    assert code == 1
    assert err.count("\n") == 1
    for words in ("rank 0: out of memory", "--save-memory", "rank0.log"):
        assert words in err


def test_a_full_disk_is_named_although_no_log_can_be_written(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, "fill the disk"))
    assert (code, err.count("\n")) == (2, 1)
    assert "manifest.json: cannot be written (File too large)" in err
    assert not list((tmp_path / "samples").glob(".*.part*"))


def test_a_place_that_cannot_be_written_is_named_before_anything_starts(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, "greet", 1, "--out", "/sys/osp-opt"))
    assert (code, out) == (2, "")
    assert err.startswith("osp-opt: error: /sys/osp-opt: cannot be written (")
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything_and_says_how_to_go_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = start(tmp_path, "sleep")
    wait_until_asleep(process)
    below = descendants(process.pid)
    assert int((tmp_path / STATE / "pid-0").read_text()) in below
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    assert err.count("\n") == 1
    assert "same command again" in err
    assert_all_end(below)


def test_a_job_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep", under=("nohup",))
    wait_until_asleep(process)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    code, _, _ = finish(process)
    assert code == 128 + signal.SIGTERM, "the hangup came first"


def test_killing_the_launcher_leaves_no_orphan_and_no_lock(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep")
    wait_until_asleep(process)
    below = descendants(process.pid)
    assert below
    process.kill()
    process.communicate(timeout=300)
    assert_all_end(below)
    code, _, err = finish(start(tmp_path, "greet", 1, "--seed", "1"))
    assert (code, err) == (0, "")


@pytest.mark.parametrize("processes", [1, 2])
def test_neither_files_of_the_current_folder_nor_settings_of_other_jobs_reach_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """A user's random.py, or a folder called like the package, is neither run nor in the way; and a
    refused input is refused once, with its reason, whatever an operator has set.
    """
    trap = "raise SystemExit('imported from the current folder')"
    for name in ("random.py", "torch.py", "osp_opt.py"):
        (tmp_path / name).write_text(trap)
    for name, value in {
        "PET_MAX_RESTARTS": "3",
        "PET_REDIRECTS": "3",
        "PET_NO_PYTHON": "1",
        "PET_NNODES": "2",
        "MASTER_ADDR": "10.1.2.3",
        "RANK": "3",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    # -P for the launcher alone, as the installed script is started.
    process = start(tmp_path / "work", "greet and refuse", processes, python=("-P",))
    code, out, err = finish(process)
    assert (code, err) == (2, "osp-opt: error: schedule s.txt: entry 3 is not a number\n")
    assert "rank 0 of" in out


@pytest.mark.parametrize(
    "variables",
    [
        {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "4", "RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "1"},
        {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"},
    ],
)
def test_started_by_another_launcher_it_says_what_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, err = finish(start(tmp_path, "greet"))
    assert (code, err.count("\n")) == (2, 1)
    assert "starts its own processes" in err
    assert "--nproc-per-node 4" in err


def test_a_busy_endpoint_ends_within_the_timeout(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        endpoint = f"127.0.0.1:{busy.getsockname()[1]}"
        more = ("--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--timeout", "4")
        code, _, err = finish(start(tmp_path, "greet", 2, *more))
    assert (code, err.count("\n")) == (1, 1)
    assert "did not meet within --timeout" in err


def test_a_job_that_did_nothing_did_not_succeed(tmp_path: Path) -> None:
    code, _, err = finish(start(tmp_path, "leave"))
    assert code == 1
    assert "without having finished" in err


@pytest.mark.parametrize("shell", ["{} >&-", "{} | head -c 1", "PYTHONIOENCODING=ascii {}"])
def test_no_output_fails_a_job(tmp_path: Path, shell: str) -> None:
    """Closed, left by its reader, or unable to say what a prompt says."""
    job = f"{sys.executable} -m osp_opt sample --device cpu --workdir w --text-prompt '\u7403'"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shell.format(job)}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(STAND_IN)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, without_notes(done.stderr)) == (0, "")
    record = json.loads((tmp_path / "w" / STATE / "options.json").read_text())
    assert record["finished"] is True
