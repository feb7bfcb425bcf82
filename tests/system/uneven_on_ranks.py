"""Run on several ranks: calibrate and both searches, with less patience than a video takes.

Argument: a working folder. Every rank makes videos alone, one more of them than there are ranks.
"""

from __future__ import annotations

import os
from pathlib import Path

from osp_opt.base.progress import Progress
from osp_opt.options import CalibrateOptions, JobOptions, SearchCacheOptions, SearchStepsOptions
from osp_opt.run.worker import JOBS
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel

TIMEOUT_S = 1.0
STEPS = 80  # of the bundled model: several times as long as that, on one thread


def commands(workdir: Path, ranks: int) -> list[JobOptions]:
    layout = {"workdir": workdir, "device": "cpu", "parallel": f"dp={ranks}"}
    short = {**layout, "budget": 2.0, "verify": True, "verify_prompts": 1, "force": True}
    return [
        CalibrateOptions(**layout, steps=STEPS, num_prompts=ranks + 1, yardstick=False),
        SearchStepsOptions(**short, steps="40"),
        SearchCacheOptions(**short, steps=STEPS, ratio=1.3),
    ]


def main(workdir: Path) -> None:
    jobs = {name: load() for name, load in JOBS.items() if name.startswith(("cal", "search"))}
    device = Device.open("cpu")
    ranks = int(os.environ["WORLD_SIZE"])
    with Parallel.open(device, layout=f"dp={ranks}", timeout_s=TIMEOUT_S) as parallel:
        for options in commands(workdir, ranks):
            options.run_dir.mkdir(parents=True, exist_ok=True)
            progress = Progress(parallel.rank)
            jobs[options.command](
                options, WorkerContext(device, parallel, options.run_dir, progress)
            )
