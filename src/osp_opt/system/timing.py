"""How long the stages of a run take, and how much memory they need. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from osp_opt.quality.intervals import Interval, ratio_ci


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class StageTimes:
    """All runs of one stage."""

    seconds: tuple[float, ...]
    peak_bytes: int | None
    """Most memory in use during any of the runs; None when it was not measured."""

    @property
    def total(self) -> float:
        """Seconds, all runs together."""
        return sum(self.seconds)

    @property
    def median(self) -> float:
        """Seconds of a typical run."""
        return median(self.seconds)

    def as_json(self) -> dict[str, Any]:
        """Count, total and median seconds, peak bytes."""
        return {
            "count": len(self.seconds),
            "total_seconds": self.total,
            "median_seconds": self.median,
            "peak_bytes": self.peak_bytes,
        }


@dataclass
class Timer:
    """Wall-clock time and peak memory by stage; stages may repeat and nest.

    synchronize: waits for the device's queued work (``Device.synchronize``); called at both ends
    of a stage, because without it an accelerator's time lands in whatever stage waits first.
    peak_memory: bytes, the most in use since ``reset_peak_memory`` was called last; None where
    not known. The reset happens when an outermost stage begins, so the peak of a nested stage
    includes what its surroundings needed before it.
    """

    synchronize: Callable[[], None] = _nothing
    peak_memory: Callable[[], int | None] | None = None
    reset_peak_memory: Callable[[], None] = _nothing
    _seconds: dict[str, list[float]] = field(default_factory=dict, init=False)
    _peaks: dict[str, int] = field(default_factory=dict, init=False)
    _depth: int = field(default=0, init=False)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block as one run of ``name``; a block that raises is not recorded."""
        if self._depth == 0:
            self.reset_peak_memory()
        self._depth += 1
        try:
            self.synchronize()
            start = time.perf_counter()
            yield
            self.synchronize()
            elapsed = time.perf_counter() - start
        finally:
            self._depth -= 1
        self._seconds.setdefault(name, []).append(elapsed)
        peak = self.peak_memory() if self.peak_memory else None
        if peak is not None:
            self._peaks[name] = max(peak, self._peaks.get(name, 0))

    def __getitem__(self, name: str) -> StageTimes:
        """The runs of one stage. Raises KeyError when it never ended."""
        return StageTimes(tuple(self._seconds[name]), self._peaks.get(name))

    def stages(self) -> dict[str, StageTimes]:
        """All stages, in the order in which they first ended."""
        return {name: self[name] for name in self._seconds}

    def reset(self) -> None:
        """Forget everything measured so far."""
        self._seconds.clear()
        self._peaks.clear()


def speedup(baseline: Sequence[float], candidate: Sequence[float]) -> Interval:
    """How many times faster: the mean (geometric) of ``baseline[i] / candidate[i]``, with interval.

    Pairs are runs of the same work taken one right after the other, so that a machine that slows
    down slows both. Raises ValueError when lengths differ, or a time is not above 0.
    """
    if len(baseline) != len(candidate):
        raise ValueError(f"pairs needed, got {len(baseline)} and {len(candidate)} times")
    if min(*baseline, *candidate, 1.0) <= 0:
        raise ValueError("times must be above 0")
    ratios = [slow / fast for slow, fast in zip(baseline, candidate, strict=True)]
    return ratio_ci(ratios)
