"""Run a function on several real processes."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 300


@cache
def forks() -> ForkServerContext:
    """Starts processes that have loaded everything: what `preloaded` imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))
        patch.setenv("OMP_NUM_THREADS", "1")  # a process forked from a threaded one may hang
        patch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
        first = context.Process(target=os.getpid)
        first.start()
        first.join()
    return context


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    main: Callable[..., Any],
    processes: int,
    *arguments: object,
    logs: Path,
    limit_s: float = TIMEOUT_S,
) -> None:
    """Call ``main(*arguments)`` on so many ranks; fails with what they said when one of them does.

    The ranks are forked from a process that has loaded torch and the package, which takes longer
    than all that they do; the launcher that starts them for users is tested in tests/run.
    """
    port = free_port()
    told = [logs / f"rank{rank}.log" for rank in range(processes)]
    ranks = [
        forks().Process(target=_run_rank, args=(rank, processes, port, told[rank], main, arguments))
        for rank in range(processes)
    ]
    for rank in ranks:
        rank.start()
    deadline = time.monotonic() + limit_s
    for rank in ranks:
        rank.join(max(0.0, deadline - time.monotonic()))
        rank.kill()
        rank.join()
    if any(rank.exitcode for rank in ranks):
        said = "\n".join(f"{log.name}:\n{log.read_text()[-2000:]}" for log in told if log.exists())
        pytest.fail(f"exit codes {[rank.exitcode for rank in ranks]}\n{said}")


def _run_rank(
    rank: int,
    processes: int,
    port: int,
    log: Path,
    main: Callable[..., Any],
    arguments: tuple[object, ...],
) -> None:
    with log.open("wb") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    main(*arguments)
