"""What workers tell their launcher, and the one line that it makes of their failures (no torch).

A worker writes to the pipe that is its first stderr: a file would be lost on a full disk, which may
be the very error. The pipe also carries what torch.distributed.run says.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

__all__ = ["Failure", "Listener", "explain", "tell"]

_MARK = b"osp-opt-tells "
_PIPE_BYTES = 4096  # up to this size (PIPE_BUF of Linux) a pipe keeps messages of ranks apart
_MAX_TEXT = 1500  # characters, of which JSON makes at most twice as many bytes but for escapes


def tell(descriptor: int, event: str, **fields: Any) -> None:
    """Tell the launcher that listens on `descriptor`; without one, nothing happens.

    Events: "started" (rank, pid), "finished" (rank, and the code that the command shall end with),
    "death" (rank, code: how a worker's process ended, as torch elastic knows it), "unmet" (the
    machines did not find each other), "failure" (the fields of a Failure).
    """
    line = _MARK + json.dumps({"event": event, **fields}).encode() + b"\n"
    with suppress(OSError):
        os.write(descriptor, line)


@dataclass(frozen=True)
class Failure:
    """Why a worker ended.

    follows: because another one did not answer; the cause lies there. lost: the ranks that gave no
    sign of life.
    """

    rank: int
    time: float
    message: str
    exit_code: int
    follows: bool = False
    lost: tuple[int, ...] = ()

    def send(self, descriptor: int) -> None:
        """Tell the launcher, in a message that is not torn."""
        for limit in (_MAX_TEXT, _MAX_TEXT // 4):
            fields = {**asdict(self), "message": self.message[:limit]}
            if len(json.dumps(fields)) + 64 <= _PIPE_BYTES:
                break
        tell(descriptor, "failure", **fields)


class Listener:
    """Reads a stream of the workers to its end: what they tell is kept, all else goes to a log."""

    def __init__(self, stream: IO[bytes], log: IO[bytes]) -> None:
        self.failures: list[Failure] = []
        self.deaths: dict[int, int] = {}
        self.started: dict[int, int] = {}
        self.finished: dict[int, int] = {}  # exit code of the command, by rank
        self.unmet = False
        self._stream = stream
        self._log = log
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for line in self._stream:
            if line.startswith(_MARK):
                with suppress(ValueError, TypeError, KeyError):  # cut short by a kill
                    self._heed(json.loads(line[len(_MARK) :]))
                    continue
            with suppress(OSError):  # a full disk; what failed comes as a failure
                self._log.write(line)
                self._log.flush()

    def _heed(self, told: dict[str, Any]) -> None:
        event = told.pop("event")
        if event == "failure":
            self.failures.append(Failure(**{**told, "lost": tuple(told["lost"])}))
        elif event == "death":
            self.deaths[int(told["rank"])] = int(told["code"])
        elif event == "started":
            self.started[int(told["rank"])] = int(told["pid"])
        elif event == "finished":
            self.finished[int(told["rank"])] = int(told["code"])
        elif event == "unmet":
            self.unmet = True

    def end_lost(self) -> None:
        """Kill the workers of this machine that gave no sign of life: they heed no other signal."""
        lost = {rank for failure in self.failures for rank in failure.lost}
        for rank in (lost & self.started.keys()) - self.finished.keys():
            with suppress(ProcessLookupError):
                os.kill(self.started[rank], signal.SIGKILL)

    def close(self, timeout_s: float) -> None:
        """Wait until every writer has ended, at most `timeout_s` seconds."""
        self._thread.join(timeout_s)


def explain(
    failures: Sequence[Failure], deaths: Mapping[int, int], world_size: int, log: Path
) -> tuple[str, int]:
    """The line for the user, and the exit code of the job.

    `deaths` has the exit code (negative: a signal) of workers whose process failed, by rank; the
    ranks' logs lie beside `log`, the launcher's.

    When one rank fails, others follow because they wait for it: the cause is the first failure of
    a rank's own, else a rank that gave no sign of life (which is killed at last), else one that was
    killed, else the ranks that said nothing.
    """
    logs = log.parent
    ordered = sorted(failures, key=lambda failure: failure.time)
    for first in ordered:
        if not first.follows:
            return first.message, first.exit_code
    for first in ordered:
        if first.lost:
            return f"{first.message}; see {logs}/rank{first.lost[0]}.log", first.exit_code
    killed = {r: code for r, code in deaths.items() if code < 0 and code != -signal.SIGTERM}
    if not killed and ordered:
        first = ordered[0]
        silent = sorted(set(range(world_size)) - {failure.rank for failure in failures})
        if not silent:
            return f"{first.message}; see the logs of all ranks in {logs}", first.exit_code
        names = ", ".join(map(str, silent))
        plural = "s" if len(silent) > 1 else ""
        return (
            f"rank{plural} {names}: no sign of life; {first.message}; "
            f"see {logs}/rank{silent[0]}.log",
            first.exit_code,
        )
    if not deaths:
        return f"the workers could not be started; see {log}", 1
    rank, code = next(iter((killed or deaths).items()))
    how = f"exit code {code}"
    if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
        how += " (out of memory?)" if -code == signal.SIGKILL else ""
    message = f"the worker of rank {rank} died: {how}; see {logs}/rank{rank}.log"
    return message, code if code > 0 else 128 - code
