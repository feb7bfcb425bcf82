"""Run on several ranks: all searches on what calibrate left.

Arguments: a working folder with a calibration, the folder of a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from osp_opt.base.ledger import TrialLedger
from osp_opt.base.progress import Progress
from osp_opt.calibration.source import open_source
from osp_opt.options import JobOptions, OptimizeOptions, SearchCacheOptions, SearchStepsOptions
from osp_opt.run.worker import JOBS
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.cache.block_times import BlockTimes
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel

STEPS = 6
TIMES = BlockTimes((1.0, 1.0, 1.0, 1.0), 0.01, 0.01)  # given, so that no clock decides

TIMED = {  # what it is called in the ledger
    "search-cache": ("block times", "block times with guidance"),
    "optimize": ("step times",),
}


def searches(workdir: Path, checkpoint: Path) -> list[JobOptions]:
    shared = {"model_path": str(checkpoint), "workdir": workdir, "device": "cpu"}
    return [
        SearchStepsOptions(steps="4", verify=True, verify_prompts=2, budget=4.0, **shared),
        SearchCacheOptions(steps=STEPS, max_loss=0.9, verify_prompts=2, budget=12.0, **shared),
        OptimizeOptions(max_loss=0.9, verify_prompts=1, budget=10.0, **shared),
    ]


def main(workdir: Path, checkpoint: Path) -> None:
    device = Device.open("cpu")
    with Parallel.open(device, timeout_s=120) as parallel:
        for options in searches(workdir, checkpoint):
            options.run_dir.mkdir(parents=True, exist_ok=True)
            progress = Progress(parallel.rank)
            context = WorkerContext(device, parallel, options.run_dir, progress)
            if not isinstance(options, SearchStepsOptions):
                maker = open_source(options, context).maker()
                about = {"of": maker.digest(TimestepSchedule.uniform(STEPS))}
                if parallel.is_main:
                    ledger = TrialLedger(options.run_dir / "trials.jsonl")
                    for what in TIMED[options.command]:
                        key = {"what": what, **about, "timed_on": maker.timed_on}
                        ledger.add(key, TIMES.as_json())
                parallel.barrier()
            JOBS[options.command]()(options, context)
