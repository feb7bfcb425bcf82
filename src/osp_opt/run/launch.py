"""Starts the workers of a job and answers for them: run folder, signals, exit code (no torch).

The tree is launcher (this process) -> torch.distributed.run -> one worker per device. The workers
share the terminal's stdout with us. Stderr comes to us: torch.distributed.run's, noise when a
worker fails, goes to ``logs/launcher.log``, and failing workers tell why there (failures.py).

No orphans: every worker's stdin is a pipe whose only write end is ours, and a worker that sees it
close ends itself. So all ends with us, even when we are killed with SIGKILL.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from osp_opt.base.errors import FileError, InputError, OptionError
from osp_opt.base.progress import report_error
from osp_opt.options import OPTIONS_FILE, JobOptions, LaunchOptions
from osp_opt.run.checks import calibration_to_make, check_before_launch, with_predecessors
from osp_opt.run.failures import Failure, Listener, explain
from osp_opt.run.folder import LOG_FOLDER, open_run
from osp_opt.system.host import share_cores

LAUNCHER_LOG = "launcher.log"
LIFELINE_VARIABLE = "OSP_OPT_LIFELINE"
GRACE_S = 10.0
"""How long workers may take to end after a signal before they are killed."""

_SHOW_CURSOR = "\x1b[?25h"
_POLL_S = 0.5
_SHOWN_LINES = 60


def launch(options: JobOptions) -> int:
    """Run one job in worker processes and return its exit code.

    0: done; 2: the user's input was refused; 128 + n: ended by signal n; else: a worker failed.
    Raises OspOptError for what is wrong before anything is started.
    """
    options, notes = with_predecessors(options)
    for note in [*notes, *check_before_launch(options)]:
        print(f"note: {note}", file=sys.stderr)
    _check_port(options)
    with ExitStack() as folders:
        run = folders.enter_context(open_run(options))
        missing = calibration_to_make(options)
        first = None if missing is None else folders.enter_context(open_run(missing))
        logs = run.folder / LOG_FOLDER
        log = logs / _log_name(options)
        code, ended_by, failures = _run(_command(options, run.folder), _environment(options), log)
        if code == 0:
            for each in filter(None, (first, run)):
                each.finish()
            return 0
        _restore_terminal()
        if ended_by is not None:
            print(
                f"osp-opt: stopped; finished work is kept in {run.folder}. "
                "Run the same command again to go on.",
                file=sys.stderr,
            )
            return 128 + ended_by
        said = log.read_text(errors="replace")
        world_size = options.nproc_per_node * options.nnodes
        message, code = explain(failures, said, world_size if options.nnodes == 1 else 0, log)
        if options.debug:
            _show_tracebacks(logs)
        if code == InputError.exit_code:
            for each in filter(None, (first, run)):
                each.forget()
        report_error(message)
        return code


def _log_name(options: LaunchOptions) -> str:
    """Machines may share the folder."""
    return LAUNCHER_LOG if options.node_rank == 0 else f"node{options.node_rank}-{LAUNCHER_LOG}"


def _command(options: LaunchOptions, folder: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={options.nproc_per_node}",
        f"--nnodes={options.nnodes}",
        *_rendezvous(options),
        "-m",
        "osp_opt.run.worker",
        str(folder / OPTIONS_FILE),
    ]


def _rendezvous(options: LaunchOptions) -> list[str]:
    """How the processes find each other; on one machine without a port, on any free one."""
    given = {
        "--rdzv-backend": options.rdzv_backend,
        "--rdzv-endpoint": options.rdzv_endpoint,
        "--rdzv-id": options.rdzv_id,
        "--master-addr": options.master_addr,
        "--master-port": options.master_port,
    }
    flags = [f"{flag}={value}" for flag, value in given.items() if value is not None]
    if options.nnodes > 1:
        # How long a machine waits for the others to come at all.
        limit = "timeout" if options.rdzv_backend in (None, "static") else "join_timeout"
        flags.append(f"--rdzv-conf={limit}={math.ceil(options.timeout)}")
        return [*flags, f"--node-rank={options.node_rank}"]
    # Names of this machine may not resolve (containers), and are not needed.
    local = ["--local-addr=127.0.0.1"]
    if not flags:
        return ["--standalone", *local]
    if options.master_addr is None and options.rdzv_endpoint is None:
        flags.append("--master-addr=127.0.0.1")
    return [*flags, *local]


def _environment(options: LaunchOptions) -> dict[str, str]:
    environment = dict(os.environ)
    environment[LIFELINE_VARIABLE] = "1"
    threads = max(1, _usable_cores() // options.nproc_per_node)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    share_cores(environment)
    # `import torch` must not load a vendor's plug-in that cannot run here; device.py asks for it.
    environment.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    return environment


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_port(options: LaunchOptions) -> None:
    """A port that is taken makes torch.distributed.run fail late and obscurely."""
    if options.nnodes > 1 or options.master_port is None or options.rdzv_endpoint is not None:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", options.master_port))
        except OSError as error:
            raise OptionError(
                f"--master-port {options.master_port}: not available ({error.strerror}); "
                "choose another, or leave it out"
            ) from error


def _run(
    command: list[str], environment: dict[str, str], log_path: Path
) -> tuple[int, int | None, list[Failure]]:
    """Run the workers to their end: exit code, the signal that ended them, what they told."""
    with (
        _opened(log_path) as log,
        subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as child,
    ):
        assert child.stdin is not None
        assert child.stderr is not None
        listener = Listener(child.stderr, log)
        received: list[int] = []

        def forward(number: int, frame: FrameType | None) -> None:
            received.append(number)
            # SIGTERM, for SIGINT too: a worker inside a collective could not act on the latter.
            child.send_signal(signal.SIGKILL if len(received) > 1 else signal.SIGTERM)

        with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), forward):
            waited = 0.0
            while True:
                try:
                    child.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    waited += _POLL_S if received else 0.0
                    if waited >= GRACE_S:
                        child.kill()
        child.stdin.close()  # the lifeline: workers that outlived their parent end
        listener.close(GRACE_S)
        return child.returncode, received[0] if received else None, listener.failures


def _opened(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(exist_ok=True)
        return log.open("wb")
    except OSError as error:
        raise FileError(f"{log}: cannot be written ({error.strerror})") from error


@contextmanager
def _handling(signals: tuple[signal.Signals, ...], handler: object) -> Iterator[None]:
    """Handle those of `signals` that are not ignored: nohup and `&` mean it so."""
    heeded = [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heeded}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _show_tracebacks(logs: Path) -> None:
    """For ``--debug``: the last lines of every rank's log."""
    for log in sorted(logs.glob("rank*.log")):
        lines = log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:]
        print("\n".join([f"{log}:", *lines]), file=sys.stderr)


def _restore_terminal() -> None:
    """A worker that is killed leaves the cursor hidden by its progress bar."""
    if sys.stdout.isatty():
        sys.stdout.write(_SHOW_CURSOR)
        sys.stdout.flush()
