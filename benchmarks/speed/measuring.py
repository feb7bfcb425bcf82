"""Timing of alternatives in one run: interleaved, so that a machine that slows down slows all."""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from osp_opt.system.device import Device, discover

Action = Callable[[], Any]


@dataclass(frozen=True)
class Times:
    """Seconds of the repeats of one alternative: on the wall, and of the process's processors."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        return {
            "repeats": len(self.wall),
            "median_seconds": median(self.wall),
            "fastest_seconds": min(self.wall),
            "slowest_seconds": max(self.wall),
            "median_cpu_seconds": median(self.cpu),
        }


def interleaved(
    actions: Mapping[str, Action], device: Device, repeats: int, warm_ups: int = 1
) -> dict[str, Times]:
    """Run all actions in turn, `repeats` times round after `warm_ups` rounds that do not count."""
    wall: dict[str, list[float]] = {name: [] for name in actions}
    cpu: dict[str, list[float]] = {name: [] for name in actions}
    collecting = gc.isenabled()
    gc.disable()
    gc.freeze()  # what is there already is not looked through between rounds
    try:
        for turn in range(warm_ups + repeats):
            for name, action in actions.items():
                device.synchronize()
                start, used = time.perf_counter(), time.process_time()
                action()
                device.synchronize()
                if turn >= warm_ups:
                    wall[name].append(time.perf_counter() - start)
                    cpu[name].append(time.process_time() - used)
            gc.collect()
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return {name: Times(tuple(wall[name]), tuple(cpu[name])) for name in actions}


def ratio(baseline: Times, other: Times, of: str = "wall") -> float:
    """How many times faster: the median of the ratios of runs one after the other."""
    pairs = zip(getattr(baseline, of), getattr(other, of), strict=True)
    return median(slow / fast for slow, fast in pairs)


def machine(device: Device) -> dict[str, Any]:
    """What the figures were measured on."""
    models = [m for d in discover() if d.kind == device.name for m in d.models]
    return {
        "device": device.name,
        "models": models or [platform.processor() or platform.machine()],
        "dtype": str(device.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
