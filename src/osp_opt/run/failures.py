"""What failed workers tell their launcher, and the one line that it makes of that (no torch).

A worker writes its error to the pipe that is its first stderr: a file would be lost on a full disk,
which may be the very error. The pipe also carries what torch.distributed.run says.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

__all__ = ["Failure", "Listener", "explain"]

_MARK = b"osp-opt-failure "
_PIPE_BYTES = 4096  # up to this size (PIPE_BUF of Linux) a pipe keeps messages of ranks apart
_MAX_TEXT = 1500  # characters, of which JSON makes at most twice as many bytes but for escapes
_NOT_MET = re.compile(r"RendezvousTimeoutError|Dist(Store|Network)Error")
_DEATH = re.compile(r"rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.DOTALL)


@dataclass(frozen=True)
class Failure:
    """Why a worker ended. `follows`: because another one did not answer; the cause lies there."""

    rank: int
    time: float
    message: str
    exit_code: int
    follows: bool = False

    def send(self, descriptor: int) -> None:
        """Tell the launcher that listens on `descriptor`; without one, nothing happens."""
        message = self.message
        for limit in (_MAX_TEXT, _MAX_TEXT // 4):
            fields = {**asdict(self), "message": message[:limit]}
            line = _MARK + json.dumps(fields).encode() + b"\n"
            if len(line) <= _PIPE_BYTES:
                break
        with suppress(OSError):
            os.write(descriptor, line)


class Listener:
    """Reads a stream of the workers to its end: failures are kept, all else goes to a log."""

    def __init__(self, stream: IO[bytes], log: IO[bytes]) -> None:
        self.failures: list[Failure] = []
        self._stream = stream
        self._log = log
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for line in self._stream:
            if line.startswith(_MARK):
                with suppress(ValueError, TypeError):  # cut short by a kill
                    self.failures.append(Failure(**json.loads(line[len(_MARK) :])))
                    continue
            with suppress(OSError):  # a full disk; what failed comes as a failure
                self._log.write(line)
                self._log.flush()

    def close(self, timeout_s: float) -> None:
        """Wait until every writer has ended, at most `timeout_s` seconds."""
        self._thread.join(timeout_s)


def explain(
    failures: Sequence[Failure], launcher_log: str, world_size: int, log: Path
) -> tuple[str, int]:
    """The line for the user, and the exit code of the job.

    `launcher_log` is the text of `log`, beside which the ranks' logs lie.

    When one rank fails, others follow because they wait for it: the cause is the first failure of
    a rank's own, else a rank that was killed, else the ranks that said nothing.
    """
    logs = log.parent
    own = [failure for failure in failures if not failure.follows]
    if own:
        first = min(own, key=lambda failure: failure.time)
        return first.message, first.exit_code
    deaths = [(int(rank), int(code)) for rank, code in _DEATH.findall(launcher_log)]
    killed = [death for death in deaths if death[1] < 0 and death[1] != -signal.SIGTERM]
    if not killed and failures:
        first = min(failures, key=lambda failure: failure.time)
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
        if _NOT_MET.search(launcher_log):
            return (
                "the machines did not meet within --timeout; are all started, and is "
                f"--master-addr or --rdzv-endpoint right and reachable? See {log}",
                1,
            )
        return f"the workers could not be started; see {log}", 1
    rank, code = killed[0] if killed else deaths[-1]
    how = f"exit code {code}"
    if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
        how += " (out of memory?)" if -code == signal.SIGKILL else ""
    message = f"the worker of rank {rank} died: {how}; see {logs}/rank{rank}.log"
    return message, code if code > 0 else 128 - code
