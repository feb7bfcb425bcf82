"""Run on two ranks: measurements shared out, and a descent on them.

Argument: a folder with a ledger begun earlier; results go there, one file per rank.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from osp_opt.base.progress import Progress
from osp_opt.generate.measurements import Measurements
from osp_opt.search.steps.ays import CoordinateDescent, Interval
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel

KEYS = list("abcbde")
STEPS = 6


def cost(step: Interval) -> float:
    """Of a step from `high` to `low`: dear at low timesteps, more than in proportion to length."""
    high, low = step
    return (high - low) ** 2 / (50.0 + low)


def main(folder: Path) -> None:
    device = Device.open("cpu")
    parallel = Parallel.open(device, timeout_s=60)
    context = WorkerContext(device, parallel, folder, Progress(parallel.rank, interactive=False))
    measurements = Measurements(folder / "ledger.jsonl", context)
    prepared: list[list[int]] = []

    def measure(i: int) -> dict[str, Any]:
        return {"index": i, "rank": parallel.rank}

    found = measurements.of(KEYS, measure, "measuring", prepared.append)
    again = measurements.of(KEYS, measure, "measuring", prepared.append)

    def cost_of(steps: list[Interval]) -> list[float]:
        keys = [f"{high:.9f} {low:.9f}" for high, low in steps]
        values = measurements.of(keys, lambda i: {"cost": cost(steps[i])}, "")
        return [float(each["cost"]) for each in values]

    schedule, total = CoordinateDescent(cost_of, candidates=5).search(STEPS)
    made = {
        "found": found,
        "again": again,
        "prepared": prepared,
        "recalled": measurements.recall("b"),
        "schedule": schedule.timesteps,
        "cost": total,
    }
    (folder / f"{parallel.rank}.json").write_text(json.dumps(made))
    parallel.close()
