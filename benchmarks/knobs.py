"""Where to put a peer's threshold so that its curve covers the speeds that are compared.

Thresholds of adaptive caches mean something else on every model. Each is therefore tried over a
wide grid on one calibration prompt, the share of blocks that ran is counted, and the thresholds
that come out near the wanted speeds are taken: a favour that every user of such a cache needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np

from benchmarks.contest import Runtime
from benchmarks.lab import Lab
from osp_opt.pipelines.maker import Request
from osp_opt.tiny.prompts import load_prompts

__all__ = ["block_speedup", "tuned_thresholds"]

GRID = tuple(2.5 * 2.0**-k for k in range(13))  # descending: the fast ones are cheap to try
TARGETS = (1.25, 1.5, 2.0, 3.0)  # in blocks run; the measured speed-up is somewhat less
SLOW = 1.1


def tuned_thresholds(
    lab: Lab, name: str, at: Callable[[float], AbstractContextManager[Runtime]], model: Any
) -> list[float]:
    """Thresholds of peer `name`, ascending; where it never gets to a target, its fastest."""

    def measure() -> dict[str, Any]:
        speedups: list[float] = []
        for threshold in GRID:
            speedups.append(block_speedup(lab, at(threshold), model))
            if speedups[-1] < SLOW:
                break
        return {"speedups": speedups}

    measured = lab.remembered(f"thresholds {name}", measure)["speedups"]
    speedups = np.maximum.accumulate(measured[::-1])
    grid = np.log(GRID[: len(speedups)][::-1])
    fastest = float(speedups[-1])
    reached = [target for target in TARGETS if target < fastest]
    if len(reached) < len(TARGETS):
        reached.append(fastest)
    # Where several thresholds do the same (the first ones often do nothing), the last one counts.
    firm: np.ndarray[Any, Any] = np.append(speedups[1:] > speedups[:-1], True)
    found = np.exp(np.interp(reached, speedups[firm], grid[firm]))
    return sorted({float(f"{threshold:.3g}") for threshold in found})


def block_speedup(lab: Lab, opened: AbstractContextManager[Runtime], model: Any) -> float:
    """All block runs of one calibration video over those that were really made."""
    request = Request(load_prompts("calibration")[0], lab.seed)
    blocks = list(model.transformer_blocks)
    with opened as runtime, _counted(blocks) as runs:
        lab.denoise(request, lab.reference, runtime.cache, runtime.transformer)
    return len(lab.reference) * len(blocks) / max(1, len(runs))


@contextmanager
def _counted(blocks: list[Any]) -> Iterator[list[int]]:
    """Grows by one entry for every block that runs (fused projections pass `to_q` by, the feed
    forward layer is always called).
    """
    runs: list[int] = []
    hooks = [
        block.ff.register_forward_hook(lambda *_, i=i: runs.append(i))
        for i, block in enumerate(blocks)
    ]
    try:
        yield runs
    finally:
        for hook in hooks:
            hook.remove()
