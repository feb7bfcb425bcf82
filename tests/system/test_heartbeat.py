"""Who counts as alive: threads that share a plain store stand for the ranks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from osp_opt.system.heartbeat import Heartbeat, Meetings, Silence

TIMEOUT_S = 0.5
LONG_S = 60.0  # only bounds a failing test
HOUR_S = 3600.0


class SharedStore:
    """A dictionary that is asked for keys that are there."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.values[key] for key in keys]


class BrokenStore(SharedStore):
    """Its host is gone."""

    broken = False

    def multi_get(self, keys: list[str]) -> list[bytes]:
        if self.broken:
            raise RuntimeError("Broken pipe")
        return super().multi_get(keys)


@contextmanager
def beating(store: SharedStore, ranks: int) -> Iterator[list[Heartbeat]]:
    beats = [Heartbeat(store, rank, ranks, TIMEOUT_S) for rank in range(ranks)]
    for beat in beats:
        beat.start()
    try:
        yield beats
    finally:
        for beat in beats:
            beat.close()


def test_waiting_and_computing_are_signs_of_life_and_sleeping_is_none() -> None:
    with beating(SharedStore(), 3) as (first, second, third):
        # One process, one main thread: where it idles, only who waits for others lives.
        with first.waiting(), second.waiting():
            time.sleep(3 * TIMEOUT_S)
            (lost,) = first.lost(range(3))
            assert (lost.rank, lost.gone) == (2, False)
            assert lost.seconds >= TIMEOUT_S
            assert str(lost).startswith("rank 2: no sign of life for ")
            assert second.lost([0, 1]) == []
        end = time.monotonic() + 3 * TIMEOUT_S
        while time.monotonic() < end:
            sum(range(1000))
        assert first.lost(range(3)) == third.lost(range(3)) == []


def test_a_rank_that_ends_says_so() -> None:
    with beating(SharedStore(), 2) as (first, second):
        second.close()
        second.close()
        first.wait_for_leaving()
        assert str(first.lost([1])[0]) == "rank 1: has ended"


def test_the_last_to_leave_does_not_wait_for_the_next_beat() -> None:
    store = SharedStore()
    first, second = (Heartbeat(store, rank, 2, TIMEOUT_S) for rank in range(2))
    first.interval_s = HOUR_S
    first.start()
    leaving = threading.Thread(target=first.wait_for_leaving, daemon=True)
    leaving.start()
    second.close()
    leaving.join(LONG_S)
    assert not leaving.is_alive()
    first.close()


def test_a_meeting_lasts_as_long_as_the_others_work() -> None:
    store = SharedStore()
    with beating(store, 2) as beats:
        meetings = [Meetings(store, rank, 2, beats[rank]) for rank in range(2)]
        came: list[list[Silence]] = []
        waiter = threading.Thread(target=lambda: came.append(meetings[0].wait()))
        waiter.start()
        end = time.monotonic() + 3 * TIMEOUT_S
        while time.monotonic() < end:
            assert waiter.is_alive()
            sum(range(1000))
        assert meetings[1].wait() == []
        waiter.join(LONG_S)
        assert came == [[]]


def test_a_meeting_ends_without_the_lost() -> None:
    store = SharedStore()
    with beating(store, 3) as beats:
        meetings = [Meetings(store, rank, 3, beats[rank]) for rank in range(3)]
        came: list[list[Silence]] = []
        threads = [
            threading.Thread(target=lambda m=meeting: came.append(m.wait()))
            for meeting in meetings[:2]
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_S)
        assert [[lost.rank for lost in each] for each in came] == [[2], [2]]


def test_a_store_that_is_gone_is_no_endless_wait() -> None:
    store = BrokenStore()
    with beating(store, 2) as (first, _):
        meetings = Meetings(store, 0, 2, first)
        Meetings(store, 1, 2, first)
        store.broken = True
        with pytest.raises(RuntimeError, match="Broken pipe"):
            meetings.wait()
        first.wait_for_leaving()
