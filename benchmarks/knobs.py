"""Where to put a peer's threshold so that its curve covers the speeds that are compared.

Thresholds of adaptive caches mean something else on every model. Each is therefore tried over a
wide grid on one calibration prompt, the work of the blocks is counted, and the thresholds that
come out near the wanted speeds are taken: a favour that every user of such a cache needs.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from benchmarks.contest import Runtime
from benchmarks.lab import Lab
from osp_opt.pipelines.maker import Request
from osp_opt.tiny.prompts import load_prompts

__all__ = ["block_speedup", "tuned_thresholds"]

GRID = tuple(2.5 * 2.0**-k for k in range(13))  # descending: the fast ones are cheap to try
SLOW = 1.1


def tuned_thresholds(
    lab: Lab, name: str, at: Callable[[float], AbstractContextManager[Runtime]]
) -> list[float]:
    """Thresholds of peer `name`, ascending; where it never gets to a target, its fastest."""

    def measure() -> dict[str, Any]:
        speedups: list[float] = []
        for threshold in GRID:
            speedups.append(block_speedup(lab, at(threshold)))
            if speedups[-1] < SLOW:
                break
        return {"speedups": speedups}

    measured = lab.remembered(f"thresholds {name}", measure)["speedups"]
    speedups = np.maximum.accumulate(measured[::-1])
    grid = np.log(GRID[: len(speedups)][::-1])
    fastest = float(speedups[-1])
    reached = [target for target in lab.size.targets if target < fastest]
    if len(reached) < len(lab.size.targets):
        reached.append(fastest)
    # Where several thresholds do the same (the first ones often do nothing), the last one counts.
    firm: np.ndarray[Any, Any] = np.append(speedups[1:] > speedups[:-1], True)
    found = np.exp(np.interp(reached, speedups[firm], grid[firm]))
    return sorted({float(f"{threshold:.3g}") for threshold in found})


def block_speedup(lab: Lab, opened: AbstractContextManager[Runtime]) -> float:
    """Work of one calibration video without a cache over what was really made."""
    request = Request(load_prompts("calibration")[0], lab.seed)
    with opened as runtime:
        _, work = lab.counted(request, lab.reference, runtime.cache, runtime.transformer)
    return lab.plain_work / max(1.0, work)
