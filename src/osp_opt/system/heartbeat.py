"""Which ranks are alive: waiting for work is not a hang (no torch).

Every rank says in the job's store, several times per timeout, that it lives, and looks who of the
others does. A rank lives while its main thread computes, or waits for others; one that is stopped,
gone, or stuck outside Python does neither, however long the others' work takes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Heartbeat", "Meetings", "Silence", "Store"]

BEATS_PER_TIMEOUT = 20
SLOWEST_S, QUICKEST_S = 5.0, 0.05  # bounds on the time between two beats
_COMPUTING_S = 1e-3  # of processor time: what a thread that only waits does not use
_GONE = b"gone"
_QUICKEST_LOOK_S, _SLOWEST_LOOK_S = 0.001, 0.05  # at who has come, or is gone


class Store(Protocol):
    """What is used of a torch.distributed store."""

    def set(self, key: str, value: str) -> None: ...

    def multi_get(self, keys: list[str]) -> list[bytes]: ...


@dataclass(frozen=True)
class Silence:
    """A rank that gave no sign of life for `seconds`, or said that it ends (`gone`)."""

    rank: int
    seconds: float
    gone: bool = False

    def __str__(self) -> str:
        return f"rank {self.rank}: " + (
            "has ended" if self.gone else f"no sign of life for {self.seconds:.0f} s"
        )


class Heartbeat:
    """This rank's beat, and what it hears of the others, from `start` to `close`.

    Make one on every rank before they meet, and start it when they have.

    Args:
        store: of the job, by a connection of its own: one takes one call at a time.
        rank: this one.
        world_size: number of ranks.
        timeout_s: after so many seconds without a sign of life a rank counts as lost.
    """

    def __init__(self, store: Store, rank: int, world_size: int, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.interval_s = min(max(timeout_s / BEATS_PER_TIMEOUT, QUICKEST_S), SLOWEST_S)
        self._store = store
        self._rank = rank
        self._heard: dict[int, bytes] = dict.fromkeys(range(world_size), b"")
        self._silent_s = dict.fromkeys(range(world_size), 0.0)
        self._waiting = 0
        self._main = threading.main_thread()
        self._worked = 0.0  # processor time of the main thread at its last sign of life
        self._beats = 0
        self._deaf = False  # the store is gone
        self._closed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="osp-opt-heartbeat", daemon=True)
        self._say(b"0")

    def start(self) -> None:
        """Begin to beat and to listen."""
        self._thread.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """While this rank waits for others it lives."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    def lost(self, among: Iterable[int], after_s: float | None = None) -> list[Silence]:
        """Those of the ranks `among` that count as lost (silent for `after_s`), in order.

        Time in which this process was itself stopped, or got no processor, does not count.
        """
        limit = self.timeout_s if after_s is None else after_s
        return [
            Silence(rank, self._silent_s[rank], self._heard[rank] == _GONE)
            for rank in among
            if self._heard[rank] == _GONE or self._silent_s[rank] >= limit
        ]

    def wait_for_leaving(self) -> None:
        """Wait until all others have ended or count as lost: the last thing before `close`."""
        self._end_thread()  # which looks too seldom; from here on this thread beats
        others = [rank for rank in self._heard if rank != self._rank]
        pause = _QUICKEST_LOOK_S
        with self.waiting():
            while len(self.lost(others)) < len(others) and not self._deaf:
                time.sleep(pause)
                self._beat(pause)
                pause = min(2 * pause, _SLOWEST_LOOK_S)

    def close(self) -> None:
        """Say that this rank ends, and stop; harmless when called twice."""
        if self._closed:
            return
        self._closed = True
        self._end_thread()
        with suppress(RuntimeError):  # the store may be gone before us
            self._say(_GONE)

    def _end_thread(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(self.timeout_s)

    def _run(self) -> None:
        before = time.monotonic()
        while not self._deaf and not self._stop.wait(self.interval_s):
            now = time.monotonic()
            passed, before = min(now - before, 2 * self.interval_s), now
            self._beat(passed)

    def _beat(self, passed: float) -> None:
        """Say that this rank lives, and hear the others, who had `passed` seconds to say it."""
        try:
            if self._lives():
                self._beats += 1
                self._say(str(self._beats).encode())
            self._hear(passed)
        except RuntimeError:  # the store does not answer: whoever waits finds out, and says so
            self._deaf = True

    def _lives(self) -> bool:
        if self._waiting:
            return True
        worked = _processor_time(self._main)
        if worked is not None and worked - self._worked < _COMPUTING_S:
            return False
        self._worked = worked or 0.0
        return True

    def _hear(self, passed: float) -> None:
        keys = [_key(rank) for rank in self._heard]
        for rank, value in zip(self._silent_s, self._store.multi_get(keys), strict=True):
            same = value == self._heard[rank]
            self._silent_s[rank] = self._silent_s[rank] + passed if same else 0.0
            self._heard[rank] = value

    def _say(self, value: bytes) -> None:
        self._store.set(_key(self._rank), value.decode())


class Meetings:
    """Where the ranks wait for each other before they talk, for as long as others work.

    Args:
        store: of the job, by another connection than the heartbeat's.
        rank: this one.
        world_size: number of ranks.
        heartbeat: tells who is lost meanwhile.
    """

    def __init__(self, store: Store, rank: int, world_size: int, heartbeat: Heartbeat) -> None:
        self._store = store
        self._rank = rank
        self._keys = [f"meetings/{r}" for r in range(world_size)]
        self._heartbeat = heartbeat
        self._number = 0
        self._arrive()

    def wait(self) -> list[Silence]:
        """Wait until every rank has called this as often; the lost for whom it is no use to wait.

        Raises RuntimeError when the store does not answer.
        """
        self._number += 1
        self._arrive()
        pause = _QUICKEST_LOOK_S
        with self._heartbeat.waiting():
            while True:
                arrived = [int(value) for value in self._store.multi_get(self._keys)]
                missing = [rank for rank, number in enumerate(arrived) if number < self._number]
                lost = self._heartbeat.lost(missing)
                if not missing or lost:
                    return lost
                time.sleep(pause)
                pause = min(2 * pause, _SLOWEST_LOOK_S)

    def _arrive(self) -> None:
        self._store.set(self._keys[self._rank], str(self._number))


def _key(rank: int) -> str:
    return f"heartbeat/{rank}"


def _processor_time(thread: threading.Thread) -> float | None:
    """Seconds of processor time that `thread` used; None where the system does not tell."""
    clock = getattr(time, "pthread_getcpuclockid", None)
    if clock is None or thread.ident is None:
        return None
    return time.clock_gettime(clock(thread.ident))
