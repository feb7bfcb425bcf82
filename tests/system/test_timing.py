"""The stage timer: what it records, when it synchronizes. No assertion depends on real time."""

from __future__ import annotations

import pytest

from osp_opt.system.timing import Timer


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
    assert timer.peaks == {"denoise": 9, "decode": 1}
    assert list(timer.seconds) == ["denoise", "decode"]
    assert all(seconds >= 0 for seconds in timer.seconds.values())


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
    assert timer.peaks == {"outer": 10, "inner": 10}
    assert timer.seconds["outer"] >= timer.seconds["inner"]


def test_failed_stage_is_not_recorded_and_leaves_the_timer_usable() -> None:
    timer, device = make_timer()
    with pytest.raises(RuntimeError), timer.stage("a"):
        raise RuntimeError
    assert timer.seconds == timer.peaks == {}
    with timer.stage("a"):
        pass
    assert device.events.count("reset") == 2  # outermost again


def test_what_a_device_does_not_tell_is_unknown() -> None:
    timer = Timer(lambda: None, lambda: None, lambda: None)
    with timer.stage("a"):
        pass
    assert timer.peaks == {"a": None}
