"""The stage timer: what it records, when it synchronizes. No assertion depends on real time."""

from __future__ import annotations

import json

import pytest

from osp_opt.system.timing import StageTimes, Timer, speedup


class RecordingDevice:
    """Counts synchronisations; its peak is what the test says, since the last reset."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.peak = 0

    def synchronize(self) -> None:
        self.events.append("sync")

    def reset(self) -> None:
        self.events.append("reset")
        self.peak = 0


def make_timer() -> tuple[Timer, RecordingDevice]:
    device = RecordingDevice()
    return Timer(device.synchronize, lambda: device.peak, device.reset), device


def test_stages_repeat_and_keep_their_order() -> None:
    timer, device = make_timer()
    for peak in (5, 9, 7):
        with timer.stage("denoise"):
            device.peak = peak
        with timer.stage("decode"):
            device.peak = 1
    assert list(timer.stages()) == ["denoise", "decode"]
    assert len(timer["denoise"].seconds) == 3
    assert timer["denoise"].peak_bytes == 9
    assert timer["decode"].peak_bytes == 1
    assert all(seconds >= 0 for seconds in timer["decode"].seconds)


def test_device_is_synchronized_at_both_ends() -> None:
    timer, device = make_timer()
    with timer.stage("a"):
        device.events.append("work")
    assert device.events == ["reset", "sync", "work", "sync"]


def test_nested_stages_do_not_reset_the_peak() -> None:
    timer, device = make_timer()
    with timer.stage("outer"):
        device.peak = 10
        with timer.stage("inner"):
            pass
    assert device.events.count("reset") == 1
    assert timer["outer"].peak_bytes == timer["inner"].peak_bytes == 10
    assert timer["outer"].total >= timer["inner"].total


def test_failed_stage_is_not_recorded_and_leaves_the_timer_usable() -> None:
    timer, device = make_timer()
    with pytest.raises(RuntimeError), timer.stage("a"):
        raise RuntimeError
    assert timer.stages() == {}
    with timer.stage("a"):
        pass
    assert device.events.count("reset") == 2  # outermost again
    timer.reset()
    assert timer.stages() == {}


def test_plain_timer_needs_no_device() -> None:
    timer = Timer()
    with timer.stage("a"):
        pass
    assert timer["a"].peak_bytes is None


def test_summary() -> None:
    times = StageTimes((1.0, 2.0, 9.0), 1024)
    assert times.total == 12
    assert times.median == 2
    summary = json.loads(json.dumps(times.as_json(), allow_nan=False))
    assert (summary["count"], summary["total_seconds"], summary["peak_bytes"]) == (3, 12, 1024)
    assert summary["median_seconds"] == 2


def test_speedup_of_a_machine_that_slows_down() -> None:
    baseline = [1.0, 2.0, 3.0, 4.0]
    found = speedup(baseline, [t / 1.5 for t in baseline])
    assert (found.estimate, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))
    with pytest.raises(ValueError, match="pairs"):
        speedup([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="above 0"):
        speedup([1.0], [0.0])
