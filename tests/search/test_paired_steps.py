"""Speed-ups on a scripted clock: known truth, on a quiet machine and on a busy one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from osp_opt.base.errors import PolicyError
from osp_opt.cache.paired_steps import PairedTimer
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache

STEPS, REST = 40, 1.0
BLOCKS = (1.0, 3.0, 2.0, 1.0)  # seconds
POLICY = CachePolicy.four_field(1, 2, 4, 3)
LOOP = sum(BLOCKS)
REUSES = sum(bool(POLICY.reuse_ranges(step)) for step in range(STEPS))
TRUTH = STEPS * (LOOP + REST) / (STEPS * (LOOP + REST) - REUSES * (BLOCKS[1] + BLOCKS[2]))


class Machine:
    """Its clock advances by the work done, times how busy it is at that moment."""

    def __init__(self, busy: Callable[[float], float]) -> None:
        self.now = 0.0
        self._busy = busy

    def work(self, seconds: float) -> None:
        for _ in range(10):  # a load may come and go within a block
            self.now += seconds / 10 * self._busy(self.now)

    def layers(self) -> list[Callable[[Any], Any]]:
        def layer(seconds: float) -> Callable[[Any], Any]:
            def run(x: Any) -> Any:
                self.work(seconds)
                return x + 1.0

            return run

        return [layer(seconds) for seconds in BLOCKS]

    def video(self, loops: Any) -> float:
        """Seconds of one video."""
        start = self.now
        for step in range(STEPS):
            out = loops.at(step)(self.layers(), torch.zeros(2))
            assert out.tolist() == [4.0, 4.0]
            self.work(REST)
        return self.now - start


class NoCache:
    def at(self, step: int, branch: str = "both") -> Any:
        def loop(layers: Any, x: Any) -> Any:
            for layer in layers:
                x = layer(x)
            return x

        return loop


def measured(machine: Machine, cache: Any = None) -> float:
    timer = PairedTimer(cache or BlockCache(POLICY), lambda: None, lambda: machine.now)
    machine.video(timer)
    return timer.speedup(STEPS)


def test_a_quiet_machine_gives_the_true_speedup() -> None:
    assert measured(Machine(lambda now: 1.0)) == pytest.approx(TRUTH, rel=1e-9)


@pytest.mark.parametrize("start", [0.0, 130.0, 300.0, 500.0])
def test_a_load_that_comes_during_the_measurement_changes_little(start: float) -> None:
    """Where whole videos one after the other would be off by a third and more."""

    def busy(now: float) -> float:
        return 2.5 if start <= now < start + 400.0 else 1.0

    assert measured(Machine(busy)) == pytest.approx(TRUTH, rel=0.02)
    if start == 0.0:
        machine = Machine(busy)
        plain, cached = machine.video(NoCache()), machine.video(BlockCache(POLICY))
        assert plain / cached > 1.3 * TRUTH


def test_short_bursts_change_little() -> None:
    """Every 37 seconds the machine is three times slower for 6, less than one step's two loops."""
    assert measured(Machine(lambda now: 3.0 if now % 37.0 < 6.0 else 1.0)) == pytest.approx(
        TRUTH, rel=0.03
    )


def test_what_a_cache_costs_is_counted() -> None:
    """A runtime that takes 2 seconds a step on its own account is not reported as free."""
    machine = Machine(lambda now: 1.0)

    class Slow(BlockCache):
        def at(self, step: int, branch: str = "both") -> Any:
            inner = super().at(step, branch)

            def loop(layers: Any, x: Any) -> Any:
                machine.work(2.0)
                return inner(layers, x)

            return loop

    whole = STEPS * (LOOP + REST)
    saved = REUSES * (BLOCKS[1] + BLOCKS[2])
    expected = whole / (whole - saved + 2.0 * STEPS)
    assert measured(machine, Slow(POLICY)) == pytest.approx(expected, rel=1e-9)


def test_branches_run_apart_are_added_and_a_reset_forgets() -> None:
    machine = Machine(lambda now: 1.0)
    timer = PairedTimer(BlockCache(POLICY), lambda: None, lambda: machine.now)
    for _ in range(2):
        timer.reset()
        for step in range(STEPS):
            for branch in ("negative", "positive"):
                timer.at(step, branch)(machine.layers(), torch.zeros(2))
            machine.work(2 * REST)
        assert timer.speedup(STEPS) == pytest.approx(TRUTH, rel=1e-9)
    timer.reset()
    with pytest.raises(PolicyError, match="at least 3"):
        timer.speedup(STEPS)
