"""What failed workers tell, and which of it the user is told."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from osp_opt.run.failures import Failure, Listener, explain, tell

LOG = Path("run/logs/launcher.log")


def waited(rank: int, time: float = 1.0) -> Failure:
    return Failure(rank, time, f"rank {rank}: barrier failed", 1, follows=True)


def test_failures_travel_through_a_pipe_between_other_lines() -> None:
    reading, writing = os.pipe()
    log = io.BytesIO()
    listener = Listener(os.fdopen(reading, "rb"), log)
    sent = [Failure(0, 1.5, "schedule s.txt: \u7403", 2), waited(3)]
    os.write(writing, b"W0101 some warning\n")
    sent[0].send(writing)
    os.write(writing, b"another\n")
    sent[1].send(writing)
    tell(writing, "started", rank=1, pid=12345)
    tell(writing, "finished", rank=1, code=4)
    tell(writing, "death", rank=2, code=-9)
    os.write(writing, b"osp-opt-tells {cut")
    os.close(writing)
    listener.close(60)
    assert listener.failures == sent
    assert (listener.started, listener.finished) == ({1: 12345}, {1: 4})
    assert (listener.deaths, listener.unmet) == ({2: -9}, False)
    assert log.getvalue() == b"W0101 some warning\nanother\nosp-opt-tells {cut"


@pytest.mark.parametrize("letter", ["x", "\u7403"])
def test_a_long_message_is_cut_to_what_a_pipe_keeps_whole(letter: str) -> None:
    reading, writing = os.pipe()
    Failure(0, 1.0, letter * 100_000, 2).send(writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        data = stream.read()
    assert len(data) <= 4096
    listener = Listener(io.BytesIO(data), io.BytesIO())
    listener.close(60)
    assert listener.failures[0].message == letter * len(listener.failures[0].message)
    assert len(listener.failures[0].message) >= 300


def test_without_a_listener_nothing_happens() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    waited(0).send(writing)
    os.close(writing)


def test_the_first_error_of_a_rank_s_own_is_the_cause() -> None:
    own = [Failure(2, 5.0, "rank 2: later", 1), Failure(1, 4.0, "rank 1: the cause", 2)]
    assert explain([waited(0), *own], {0: 1}, 3, LOG) == ("rank 1: the cause", 2)


def test_a_killed_rank_comes_before_those_that_waited_for_it() -> None:
    message, code = explain([waited(0)], {0: 1, 1: -9}, 2, LOG)
    assert code == 137
    assert message.startswith("the worker of rank 1 died: killed by SIGKILL (out of memory?)")
    assert "rank1.log" in message


def test_a_stopped_rank_is_the_cause_although_it_is_killed_at_last() -> None:
    told = "rank 3: no sign of life for 9 s; rank 0: barrier failed"
    lost = Failure(0, 6.0, told, 1, follows=True, lost=(3,))
    message, code = explain([waited(2), lost], {0: 1, 3: -9}, 4, LOG)
    assert (message, code) == (f"{told}; see run/logs/rank3.log", 1)


def test_ranks_that_say_nothing_are_named() -> None:
    message, code = explain([waited(0), waited(2)], {0: 1}, 4, LOG)
    assert code == 1
    assert message.startswith("ranks 1, 3: no sign of life; rank 0: barrier failed")
    assert message.endswith("see run/logs/rank1.log")
    # torch.distributed.run ends the silent ones itself, which is no cause.
    assert explain([waited(0)], {1: -15}, 2, LOG)[0].startswith("rank 1: no sign of life")


def test_workers_that_never_started() -> None:
    message, code = explain([], {}, 1, LOG)
    assert (code, message) == (1, "the workers could not be started; see run/logs/launcher.log")
