"""Progress speaks on rank 0 only, in plain lines where there is no terminal."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import pytest

from osp_opt.base import progress as module
from osp_opt.base.progress import Progress, Verbosity


def work(progress: Progress) -> None:
    with progress.task("prompts", total=2) as outer:
        for _ in range(2):
            with progress.task("steps", total=3) as inner:
                for _ in range(3):
                    inner.advance()
            outer.advance()
            progress.say("one [video] more")
    progress.detail("a detail")
    progress.warn("a warning")
    progress.result(["two videos"], {"videos": 2}, "osp-opt report")


class Clock(SimpleNamespace):
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        super().__init__(now=0.0)

    def monotonic(self) -> float:
        return float(self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


def test_plain_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    work(Progress(0, interactive=False))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "prompts (2)",
        *2 * ["steps (3)", "one [video] more"],
        "warning: a warning",
        "two videos",
        "next: osp-opt report",
    ]


def test_bars_on_a_terminal_keep_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(0, interactive=True)
    work(progress)
    work(progress)
    assert capsys.readouterr().out.count("one [video] more") == 4


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]) -> None:
    work(Progress(1, interactive=True))
    assert capsys.readouterr().out == ""


def test_a_failed_task_is_not_called_finished(
    capsys: pytest.CaptureFixture[str], clock: Clock
) -> None:
    def fail() -> None:
        with Progress(0, interactive=False).task("steps", 3):
            clock.now += 1000
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert capsys.readouterr().out == "steps (3)\n"


@pytest.mark.parametrize(
    ("verbosity", "out", "detailed"),
    [
        ("quiet", ["warning: a warning", "two videos"], False),
        ("verbose", ["prompts (2)", "a detail", "two videos", "next: osp-opt report"], True),
    ],
)
def test_as_much_is_told_as_was_asked_for(
    capsys: pytest.CaptureFixture[str], verbosity: Verbosity, out: list[str], detailed: bool
) -> None:
    work(Progress(0, interactive=False, verbosity=verbosity))
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in out if line not in lines] == []
    assert detailed or lines == out


def test_json_is_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(0, interactive=False, verbosity="json")
    work(progress)
    told = capsys.readouterr()
    assert json.loads(told.out) == progress.values == {"videos": 2}
    assert "prompts (2)" in told.err
    # A worker's launcher prints it: its stdout is where the lines belong.
    work(Progress(0, interactive=False, verbosity="json", stdout_is_ours=True))
    told = capsys.readouterr()
    assert "{" not in told.out
    assert "prompts (2)" in told.out
    assert told.err == ""


def test_time_left_is_the_commands_over_stages_of_unequal_work(clock: Clock) -> None:
    """Seconds per unit of work differ from stage to stage by up to a third, as they do."""
    stages = [(10, 100.0, 1.0), (4, 400.0, 1.3), (1, 50.0, 0.9)]  # units, work, seconds per work
    whole = sum(work * pace for _, work, pace in stages)
    progress = Progress(0, interactive=False, verbosity="quiet")
    progress.plan(sum(work for _, work, _ in stages))
    for units, work_, pace in stages:
        with progress.task("stage", units, work_) as task:
            for _ in range(units):
                clock.now += work_ / units * pace
                task.advance()
                left = progress.left()
                assert left is not None
                true = whole - clock.now
                assert true / 2 <= left + 1e-6 <= 2 * true + 1e-6
    assert progress.left() == pytest.approx(0.0)


def test_what_is_found_done_is_planned_away(clock: Clock) -> None:
    progress = Progress(0, interactive=False, verbosity="quiet")
    progress.plan(100.0)
    with progress.task("first", 2, 50.0) as task:
        clock.now += 10.0
        task.advance(2)
    progress.plan(20.0)  # of the other 50 units of work 30 are there already
    assert progress.left() == pytest.approx(20.0 * 10.0 / 50.0)


def test_a_long_silence_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.0)
    with Progress(0, interactive=False) as progress, progress.task("one long step", 1):
        threading.Event().wait(1.5)
    assert "one long step: 0/1" in capsys.readouterr().out
