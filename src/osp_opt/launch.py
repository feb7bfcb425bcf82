"""Starts the workers of a job and answers for them: run folder, signals, exit code (no torch).

The tree is launcher (this process) -> torch.distributed.run -> one worker per device; where one
process on one machine is all there is, the launcher starts the worker itself, which spares loading
torch twice. The workers share the terminal's stdout with us; torch.distributed.run's stderr, noise
when a worker fails, goes to ``logs/launcher.log``, and what we say instead comes from the
``error-rankN.json`` that a failing worker leaves.

No orphans: every worker's stdin is a pipe whose only write end is ours, and a worker that sees it
close ends itself. So all ends with us, even when we are killed with SIGKILL.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from osp_opt.artifacts import read_json
from osp_opt.checks import check_before_launch, with_predecessors
from osp_opt.errors import FileError, OptionError
from osp_opt.flags import report_error
from osp_opt.options import JobOptions, LaunchOptions
from osp_opt.runfolder import OPTIONS_FILE, open_run

LOG_FOLDER = "logs"
LAUNCHER_LOG = "launcher.log"
LIFELINE_VARIABLE = "OSP_OPT_LIFELINE"
GRACE_S = 10.0
"""How long workers may take to end after a signal before they are killed."""

_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK")

_SHOW_CURSOR = "\x1b[?25h"
_POLL_S = 0.5


def launch(options: JobOptions) -> int:
    """Run one job in worker processes and return its exit code.

    0: done; 2: the user's input was refused; 128 + n: ended by signal n; else: a worker failed.
    Raises OspOptError for what is wrong before anything is started.
    """
    options, notes = with_predecessors(options)
    for note in [*notes, *check_before_launch(options)]:
        print(f"note: {note}", file=sys.stderr)
    _check_port(options)
    with open_run(options) as run:
        logs = run.folder / LOG_FOLDER
        logs.mkdir(exist_ok=True)
        for stale in logs.glob("error-rank*.json"):
            stale.unlink()
        code, ended_by = _run(_command(options, run.folder), _environment(options), logs)
        if code == 0:
            return 0
        if _is_alone(options):
            _note_death(logs / LAUNCHER_LOG, code)
        if ended_by is not None:
            _restore_terminal()
            print(
                f"osp-opt: stopped; finished work is kept in {run.folder}. "
                "Run the same command again to go on.",
                file=sys.stderr,
            )
            return 128 + ended_by
        _restore_terminal()
        return _explain_failure(logs, debug=options.debug)


def _is_alone(options: LaunchOptions) -> bool:
    """Whether the job is one process that nobody else has to find."""
    return options.nproc_per_node == options.nnodes == 1 and not _given_rendezvous(options)


def _command(options: LaunchOptions, folder: Path) -> list[str]:
    if _is_alone(options):
        return [sys.executable, "-m", "osp_opt.worker", str(folder / OPTIONS_FILE)]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={options.nproc_per_node}",
        f"--nnodes={options.nnodes}",
        *_rendezvous(options),
        "-m",
        "osp_opt.worker",
        str(folder / OPTIONS_FILE),
    ]


def _given_rendezvous(options: LaunchOptions) -> list[str]:
    given = {
        "--rdzv-backend": options.rdzv_backend,
        "--rdzv-endpoint": options.rdzv_endpoint,
        "--rdzv-id": options.rdzv_id,
        "--master-addr": options.master_addr,
        "--master-port": options.master_port,
    }
    return [f"{flag}={value}" for flag, value in given.items() if value is not None]


def _rendezvous(options: LaunchOptions) -> list[str]:
    """How the processes find each other; on one machine without a port, on any free one."""
    flags = _given_rendezvous(options)
    if options.nnodes > 1:
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
    if _is_alone(options):
        for name in _RANK_VARIABLES:  # of another job that we may be part of
            environment.pop(name, None)
    threads = max(1, _usable_cores() // options.nproc_per_node)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
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


def _run(command: list[str], environment: dict[str, str], logs: Path) -> tuple[int, int | None]:
    """Run the workers to their end: (exit code, number of the signal that ended them)."""
    with (
        (logs / LAUNCHER_LOG).open("wb") as log,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stderr=log, start_new_session=True
        ) as child,
    ):
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
        # Leaving the block closes the lifeline, which ends workers that outlived their parent.
        return child.returncode, received[0] if received else None


@contextmanager
def _handling(signals: tuple[signal.Signals, ...], handler: object) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in signals}  # type: ignore[arg-type]
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _note_death(log: Path, code: int) -> None:
    """Log how the only worker ended, in the words of torch.distributed.run."""
    with suppress(OSError), log.open("a") as file:  # the disk may be full
        file.write(f"rank : 0\nexitcode : {code}\n")


def _explain_failure(logs: Path, *, debug: bool) -> int:
    """Say in one line why the job failed, and return its exit code."""
    errors = []
    for path in logs.glob("error-rank*.json"):
        try:
            errors.append(read_json(path, "error file"))
        except FileError:
            continue  # the disk may be full; the log says more
    if errors:
        # When one rank fails, others follow because of it: the first one tells the cause.
        first = min(errors, key=lambda error: float(error["time"]))
        if debug:
            print(first["traceback"], file=sys.stderr)
        report_error(str(first["message"]))
        return int(first["exit_code"])
    text = (logs / LAUNCHER_LOG).read_text(errors="replace")
    found = re.search(r"rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", text, re.DOTALL)
    if found is None:
        report_error(f"the workers could not be started; see {logs / LAUNCHER_LOG}")
        return 1
    rank, code = int(found[1]), int(found[2])
    how = f"exit code {code}"
    if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
        how += " (out of memory?)" if -code == signal.SIGKILL else ""
    report_error(f"the worker of rank {rank} died: {how}; see {logs}/rank{rank}.log")
    return code if code > 0 else 128 - code


def _restore_terminal() -> None:
    """A worker that is killed leaves the cursor hidden by its progress bar."""
    if sys.stdout.isatty():
        sys.stdout.write(_SHOW_CURSOR)
        sys.stdout.flush()
