"""How long the stages of a run take, and how much memory they need. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Timer:
    """Wall-clock time and peak memory by stage; stages may repeat and nest.

    synchronize: waits for the device's queued work (``Device.synchronize``); called at both ends
    of a stage, because without it an accelerator's time lands in whatever stage waits first.
    peak_memory: bytes, the most in use since ``reset_peak_memory`` was called last; None where
    not known. The reset happens when an outermost stage begins, so the peak of a nested stage
    includes what its surroundings needed before it.
    seconds: of the last run of each stage. peaks: bytes, the most of any run; None: not known.
    """

    synchronize: Callable[[], None]
    peak_memory: Callable[[], int | None]
    reset_peak_memory: Callable[[], None]
    seconds: dict[str, float] = field(default_factory=dict, init=False)
    peaks: dict[str, int | None] = field(default_factory=dict, init=False)
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
        self.seconds[name] = elapsed
        known, peak = self.peaks.get(name), self.peak_memory()
        self.peaks[name] = known if peak is None else max(peak, known or 0)
