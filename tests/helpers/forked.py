"""Commands as real processes that can be killed at any moment.

They are forked from a server that has imported everything, so that a run costs its work and not
its imports, and a random moment falls into the work. Each does what `osp-opt` does, but for the
start of the workers: one runs in the launcher's own process, several are forked from it, without
torch.distributed.run in between (tests/run/test_launch.py has that whole tree).
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import resource
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launching import forks, free_port
from parsing import parse

from osp_opt.base.errors import OspOptError
from osp_opt.base.terminal import report_error
from osp_opt.options import OPTIONS_FILE, EvaluateOptions, JobOptions
from osp_opt.run.failures import Listener
from osp_opt.run.launch import Ended, launch

PIPE_BYTES = 65536
LIMIT_S = 900  # only bounds a failing test
CHANGES = ("os.rename", "os.remove", "os.mkdir", "subprocess.Popen")
WRITING = os.O_WRONLY | os.O_RDWR

Options = JobOptions | EvaluateOptions


@dataclass(frozen=True)
class Exited:
    """How a process ended: exit code (negative: a signal), seconds, what it printed.

    `changes` counts its changes of files; 0 when it did not live to tell.
    """

    code: int
    seconds: float
    out: str
    err: str
    changes: int


class Server:
    """Starts commands; `folder` takes what they print."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(
        self,
        options: Options,
        *,
        current: Path | None = None,
        after_s: float | None = None,
        at_change: int | str | None = None,
        limit_bytes: int | None = None,
    ) -> Exited:
        """Run a command to its end, or kill it; in the folder `current`.

        SIGKILL comes to it and its children after `after_s` seconds, or at its `at_change`-th
        change of a file, or the first change of a file of that name. No file may grow beyond
        `limit_bytes`.
        """
        with self.started(
            options, current=current, at_change=at_change, limit_bytes=limit_bytes
        ) as process:
            start = time.monotonic()
            process.join(LIMIT_S if after_s is None else after_s)
            if process.is_alive() and after_s is not None:
                with contextlib.suppress(ProcessLookupError):  # has no group of its own yet
                    os.killpg(process.pid or 0, signal.SIGKILL)
                process.kill()
            process.join(LIMIT_S)
            return self.ended(process.exitcode, time.monotonic() - start)

    def line(self, command: str, *arguments: object, current: Path | None = None) -> str:
        """Run `osp-opt COMMAND ARGUMENTS` in a folder to its good end; what it printed."""
        line = shlex.join(map(str, arguments))
        with contextlib.chdir(current or Path.cwd()):
            options = parse(command, line)
        ended = self.run(options, current=current)
        assert ended.code == 0, (command, line, ended)
        return ended.out + ended.err

    @contextmanager
    def started(
        self,
        options: Options,
        *,
        current: Path | None = None,
        at_change: int | str | None = None,
        limit_bytes: int | None = None,
    ) -> Iterator[multiprocessing.process.BaseProcess]:
        """The running process; killed when the block is left before it has ended."""
        for name in ("out", "err", "changes"):
            (self._folder / name).write_text("")
        process = forks().Process(
            target=_command, args=(options, self._folder, current, at_change, limit_bytes)
        )
        process.start()
        try:
            yield process
        finally:
            process.kill()
            process.join()

    def ended(self, code: int | None, seconds: float = 0.0) -> Exited:
        """What is known of the process that ended last."""
        assert code is not None, f"not done after {LIMIT_S} s"
        out, err, changes = ((self._folder / n).read_text() for n in ("out", "err", "changes"))
        return Exited(code, seconds, out, err, int(changes or 0))


def _command(
    options: Options,
    folder: Path,
    current: Path | None,
    at_change: int | str | None,
    limit_bytes: int | None,
) -> None:
    """In the forked process."""
    os.setsid()
    if current is not None:
        os.chdir(current)
    for name, stream in (("out", sys.stdout), ("err", sys.stderr)):
        os.dup2(os.open(folder / name, os.O_WRONLY), stream.fileno())
    seen = _count_changes(options.workdir, at_change)
    if limit_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    try:
        code = _run(options)
    except OspOptError as error:
        report_error(str(error))
        code = error.exit_code
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    (folder / "changes").write_text(str(len(seen)))
    os._exit(code)


def _run(options: Options) -> int:
    """What the command line runs."""
    if isinstance(options, EvaluateOptions):
        from osp_opt.evaluate import files
        from osp_opt.evaluate import job as command

        return command.run(options, *files.open_takes(options))
    return launch(options, _here)


def _here(options: JobOptions, folder: Path, log: Path) -> Ended:
    """The workers in this process or forked from it; their stderr, to us, is a pipe."""
    from osp_opt.run import worker

    reading, writing = os.pipe()
    stderr = os.dup(sys.stderr.fileno())
    os.dup2(writing, sys.stderr.fileno())
    os.close(writing)
    path = str(folder / OPTIONS_FILE)
    if options.nproc_per_node == 1:
        codes = [worker.main([path])]
    else:
        environment = {
            "WORLD_SIZE": str(options.nproc_per_node),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        ranks = [
            _forked_rank({**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, path)
            for rank in range(options.nproc_per_node)
        ]
        codes = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
    os.dup2(stderr, sys.stderr.fileno())
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as stream:
        listener = Listener(io.BytesIO(os.read(reading, PIPE_BYTES)), stream)
        listener.close(LIMIT_S)
    return Ended(max(codes), None, True, not any(codes), listener)


def _forked_rank(environment: dict[str, str], path: str) -> int:
    if child := os.fork():
        return child
    from osp_opt.run import worker

    os.environ |= environment
    code = worker.main([path])
    sys.stdout.flush()
    os._exit(code)


def _count_changes(root: Path, fatal: int | str | None) -> list[str]:
    """The changes of files below `root` and programs started, from now on; dies at the `fatal`-th,
    or at the first of a file of that name.

    The signal comes before the change: a file to be replaced is written and not yet in place.
    """
    seen: list[str] = []

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if not (isinstance(flags, int) and flags & WRITING):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if event == "subprocess.Popen" or str(path).startswith(str(root)):
            seen.append(event)
            if fatal in (len(seen), Path(os.fsdecode(path)).name):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return seen
