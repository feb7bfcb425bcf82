"""Starts the workers of a job and answers for them: run folder, signals, exit code (no torch).

The tree is launcher (this process) -> torch.distributed.run -> one worker per device; a single
worker is started without torch.distributed.run, which it does not need and whose start takes as
long as its own. The workers share the terminal's stdout with us. Stderr comes to us: what is said
there, noise when a worker fails, goes to ``logs/launcher.log``, and workers tell there that they
have started, finished, or why they fail (failures.py).

No orphans: every worker's stdin is a pipe whose only write end is ours, and a worker that sees it
close ends itself. So all ends with us, even when we are killed with SIGKILL.
"""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TypeAlias

from osp_opt.base.artifacts import open_for_writing, read_json
from osp_opt.base.errors import FileError, InputError, OptionError, OspOptError
from osp_opt.base.terminal import note, report_error, visible
from osp_opt.options import OPTIONS_FILE, JobOptions, LaunchOptions
from osp_opt.run.checks import calibration_to_make, check_before_launch, with_predecessors
from osp_opt.run.failures import Listener, explain
from osp_opt.run.folder import LOG_FOLDER, open_run
from osp_opt.system.host import share_cores, usable_cores

LAUNCHER_LOG = "launcher.log"
RESULT_FILE = "result.json"
"""In the run folder: what a command found, for --json."""
LIFELINE_VARIABLE = "OSP_OPT_LIFELINE"
GRACE_S = 10.0
"""How long workers may take to end after a signal before they are killed."""

_FOREIGN = ("PET_", "TORCHELASTIC_")
_OF_A_RANK = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
)
_SHOW_CURSOR = "\x1b[?25h"
_POLL_S = 0.5
_SHOWN_LINES = 60


@dataclass(frozen=True)
class Ended:
    """How the workers ended: exit code of the whole, the signal that we were sent, what was told.

    `met` is False when not even one worker was started within --timeout; `well` says that all of
    this machine's came to their end: exit code 0 alone could be anybody's.
    """

    code: int
    by_signal: int | None
    met: bool
    well: bool
    told: Listener


Start: TypeAlias = Callable[[JobOptions, Path, Path], Ended]
"""Runs the workers of a job in its run folder to their end; the path of the launcher's log."""


def launch(options: JobOptions, start: Start | None = None) -> int:
    """Run one job in worker processes and return its exit code.

    `start` runs the workers, in place of processes of their own.

    0: done; 3, 4: done, and more than --max-loss is lost, or neither is shown; 2: the user's input
    was refused; 128 + n: ended by signal n; else: a worker failed.
    Raises OspOptError for what is wrong before anything is started.
    """
    _check_not_launched(options)
    options, notes = with_predecessors(options)
    for text in [*notes, *check_before_launch(options)]:
        if options.verbosity != "quiet":
            note(text)
    _check_port(options)
    with ExitStack() as folders:
        run = folders.enter_context(open_run(options))
        missing = calibration_to_make(options)
        first = None if missing is None else folders.enter_context(open_run(missing))
        logs = run.folder / LOG_FOLDER
        machine = f"node{options.node_rank}-" if options.node_rank else ""  # one folder for all
        log = logs / f"{machine}{LAUNCHER_LOG}"
        ended = (start or _run)(options, run.folder, log)
        if ended.well:
            for each in filter(None, (first, run)):
                each.finish()
            _tell_result(options, run.folder / RESULT_FILE)
            return max(ended.told.finished.values())
        _restore_terminal()
        if ended.by_signal is not None:
            text = f"osp-opt: stopped; finished work is kept in {run.folder}. "
            print(visible(text) + "Run the same command again to go on.", file=sys.stderr)
            return 128 + ended.by_signal
        message, code = _explained(ended, options, log)
        if options.debug:
            _show_tracebacks(logs)
        if code == InputError.exit_code:
            for each in filter(None, (first, run)):
                with suppress(OspOptError):  # a full disk
                    each.forget()
        report_error(message)
        return code


def _explained(ended: Ended, options: LaunchOptions, log: Path) -> tuple[str, int]:
    if not ended.met:
        return (
            "the processes did not meet within --timeout; are all machines started, and is "
            f"--master-addr or --rdzv-endpoint right, free and reachable? See {log}",
            1,
        )
    world_size = options.nproc_per_node * options.nnodes
    told, deaths = ended.told, dict(ended.told.deaths)
    if ended.code == 0:
        return f"the workers ended without having finished; see {log.parent}", 1
    if world_size == 1 and told.started:
        deaths.setdefault(0, ended.code)
    return explain(told.failures, deaths, world_size if options.nnodes == 1 else 0, log)


def _tell_result(options: JobOptions, path: Path) -> None:
    """For --json: the result, alone on stdout."""
    if options.verbosity == "json" and options.node_rank == 0 and path.is_file():
        print(json.dumps(read_json(path, "result")))
        path.unlink()


def _command(options: LaunchOptions, folder: Path) -> list[str]:
    worker = [*_python("osp_opt.run.worker"), str(folder / OPTIONS_FILE)]
    if options.nproc_per_node == options.nnodes == 1:
        return worker
    return [
        *_python("osp_opt.run.elastic"),
        f"--nproc-per-node={options.nproc_per_node}",
        f"--nnodes={options.nnodes}",
        *_rendezvous(options),
        "--no-python",
        *worker,
    ]


def _python(module: str) -> list[str]:
    """Python running ``run`` of one of our modules, not importing from the current folder."""
    code = (
        "from osp_opt.system.host import importing\n"
        f"with importing():\n    from {module} import run\n"
        "run()"
    )
    return [sys.executable, "-u", "-P", "-c", code]


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
    """Ours, without what configures other people's jobs, such as a Kubernetes operator's PET_*."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN) and name not in _OF_A_RANK
    }
    environment[LIFELINE_VARIABLE] = "1"
    threads = max(1, usable_cores() // options.nproc_per_node)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    share_cores(environment)
    # `import torch` must not load a vendor's plug-in that cannot run here; device.py asks for it.
    environment.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    return environment


def _check_not_launched(options: LaunchOptions) -> None:
    """Refuse to be one of many: torchrun, mpirun or srun started by habit around osp-opt."""
    environment = os.environ
    elastic = "TORCHELASTIC_RUN_ID" in environment
    counts = {
        "torchrun": environment.get("WORLD_SIZE", "1") if elastic else "1",
        "mpirun": environment.get("OMPI_COMM_WORLD_SIZE", environment.get("PMI_SIZE", "1")),
        "srun": environment.get("SLURM_STEP_NUM_TASKS", "1"),
    }
    for launcher, count in counts.items():
        if count.isdecimal() and int(count) not in (1, options.nnodes):
            raise OptionError(
                f"{launcher}: osp-opt starts its own processes; run it once per machine, "
                f"with --nproc-per-node {count} in place of {launcher}"
            )


def _check_port(options: LaunchOptions) -> None:
    """A port that is taken makes torch.distributed.run fail late and obscurely."""
    alone = options.nproc_per_node == options.nnodes == 1  # needs no port
    if alone or options.nnodes > 1 or options.master_port is None:
        return
    if options.rdzv_endpoint is not None:
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


def _run(options: LaunchOptions, folder: Path, log_path: Path) -> Ended:
    """Run the workers to their end."""
    with (
        _opened(log_path) as log,
        subprocess.Popen(
            _command(options, folder),
            env=_environment(options),
            stdin=subprocess.PIPE,
            stdout=sys.stderr.fileno() if options.verbosity == "json" else None,
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

        met = True
        with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), forward):
            started, waited = time.monotonic(), 0.0
            while True:
                try:
                    child.wait(_POLL_S)
                    break
                except subprocess.TimeoutExpired:
                    listener.end_lost()
                    waited += _POLL_S if received else 0.0
                    late = time.monotonic() - started > options.timeout + GRACE_S
                    met = met and (bool(listener.started) or not late)
                    if waited >= GRACE_S or not met:
                        child.kill()
        child.stdin.close()  # the lifeline: workers that outlived their parent end
        listener.close(GRACE_S)
        code = child.returncode
        return Ended(
            code,
            received[0] if received else None,
            met and not listener.unmet,
            code == 0 and len(listener.finished) == options.nproc_per_node,
            listener,
        )


def _opened(log: Path) -> IO[bytes]:
    try:
        log.parent.mkdir(exist_ok=True)
        return open_for_writing(log)
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
        print(visible("\n".join([f"{log}:", *lines])), file=sys.stderr)


def _restore_terminal() -> None:
    """A worker that is killed leaves the cursor hidden by its progress bar."""
    if sys.stdout.isatty():
        sys.stdout.write(_SHOW_CURSOR)
        sys.stdout.flush()
