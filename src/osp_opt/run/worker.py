"""One worker process, started by torch.distributed.run: opens device and ranks, runs the job."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

from osp_opt.base.artifacts import open_for_writing, write_json
from osp_opt.base.errors import OspOptError, WorkerError, naming_files
from osp_opt.base.progress import Progress
from osp_opt.run.failures import Failure, tell
from osp_opt.run.folder import LOG_FOLDER, load_run, remove_leftovers, results_folder
from osp_opt.run.launch import LIFELINE_VARIABLE, RESULT_FILE
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device, is_out_of_memory, settle_torch_npu
from osp_opt.system.host import importing, keep_output_harmless
from osp_opt.system.parallel import Parallel

Job: TypeAlias = Callable[[Any, WorkerContext], int | None]
"""Returns the exit code of the command, where it is not 0: a verdict, not a failure."""

_PACKAGE = Path(__file__).parents[1]


def run() -> None:
    """Run the job of this process's arguments, and end the process.

    Without what Python and libraries do at an end: threads of gloo that still run then abort the
    process (std::terminate) once in a hundred times, after all its work is done.
    """
    keep_output_harmless()
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def main(argv: list[str]) -> int:
    """Run the job that the ``options.json`` in ``argv[0]`` describes; return the exit code.

    The launcher listens where stderr goes at the start.
    """
    path = Path(argv[0])
    rank = int(os.environ.get("RANK", "0"))
    logs = path.parent / LOG_FOLDER
    launcher = os.dup(sys.stderr.fileno())
    if os.environ.get(LIFELINE_VARIABLE) == "1":
        threading.Thread(target=_end_with_launcher, daemon=True).start()
    tell(launcher, "started", rank=rank, pid=os.getpid())
    progress = Progress(rank, stdout_is_ours=True)
    _show_own_warnings(progress)
    try:
        with naming_files():
            _redirect_output(logs, rank)
            code = _run_job(path, rank, progress)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except OspOptError as error:
        with suppress(OSError):  # the log may be what cannot be written
            traceback.print_exc()
        follows = isinstance(error, WorkerError)
        lost = error.lost if isinstance(error, WorkerError) else ()
        Failure(rank, time.time(), str(error), error.exit_code, follows, lost).send(launcher)
        return error.exit_code
    except BaseException as error:
        # Not handled, only noted: the launcher tells the user and the process still fails.
        text = " ".join(str(error).split())[:300]
        said = f"{type(error).__name__}: {text}"
        if is_out_of_memory(error):
            said = f"out of memory ({text}); use --save-memory, or a smaller shape"
        message = f"rank {rank}: {said}; see {logs}/rank{rank}.log"
        Failure(rank, time.time(), message, 1).send(launcher)
        raise
    tell(launcher, "finished", rank=rank, code=code)
    return 0


def _run_job(path: Path, rank: int, progress: Progress) -> int:
    run = load_run(path)
    options = run.options
    progress.verbosity = options.verbosity
    settle_torch_npu()  # before the job imports diffusers
    with importing():
        run_job = JOBS[options.command]()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = Device.open(
        options.device, local_rank, dtype=options.dtype, attention=options.attention
    )
    if options.nnodes > 1 and rank == 0:
        # Launchers of several machines must not; here all have started and none has met rank 0.
        remove_leftovers(results_folder(options))
    opened = Parallel.open(device, layout=options.parallel, timeout_s=options.timeout)
    with opened as parallel, device.exact_float32(), progress:
        code = run_job(options, WorkerContext(device, parallel, run.folder, progress))
    if options.verbosity == "json" and progress.values is not None and rank == 0:
        write_json(run.folder / RESULT_FILE, progress.values)
    return code or 0


def _calibrate() -> Job:
    from osp_opt.calibration.job import run

    return run


def _search_steps() -> Job:
    from osp_opt.search.steps.job import run

    return run


def _search_cache() -> Job:
    from osp_opt.search.cache.job import run

    return run


def _optimize() -> Job:
    from osp_opt.search.recipe.job import run

    return run


def _sample() -> Job:
    from osp_opt.generate.job import run

    return run


JOBS: Mapping[str, Callable[[], Job]] = MappingProxyType(
    {
        "calibrate": _calibrate,
        "search-steps": _search_steps,
        "search-cache": _search_cache,
        "optimize": _optimize,
        "sample": _sample,
    }
)
"""Loads what runs each command in its worker processes. Not at import: torch_npu has to be settled
before diffusers is imported, and no job needs the others'."""


def _redirect_output(logs: Path, rank: int) -> None:
    """Stderr, and off rank 0 stdout too, go to this rank's log, native code's included."""
    logs.mkdir(parents=True, exist_ok=True)
    with open_for_writing(logs / f"rank{rank}.log", keep=True) as log:
        os.dup2(log.fileno(), sys.stderr.fileno())
        if rank != 0:
            os.dup2(log.fileno(), sys.stdout.fileno())
    faulthandler.enable()


def _end_with_launcher() -> None:
    """Wait until the launcher's end of the pipe on stdin closes, then end this process at once.

    Files are written atomically and finished work is in the ledger, so nothing is lost.
    """
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _show_own_warnings(progress: Progress) -> None:
    """Warnings of this package reach the user as one line; those of libraries stay in the log."""
    show_in_log = warnings.showwarning

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: object
    ) -> None:
        if Path(filename).is_relative_to(_PACKAGE):
            progress.warn(str(message))
        else:
            show_in_log(message, category, filename, lineno)

    class ToUser(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            progress.warn(record.getMessage())

    warnings.showwarning = show  # type: ignore[assignment]
    logging.getLogger("osp_opt").addHandler(ToUser(logging.WARNING))
