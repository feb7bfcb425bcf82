"""One rank of the scaling section: both searches' verification stages, timed.

Started by `benchmarks.scaling` under torch.distributed.run; the folder holds work.json.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from osp_opt.base.progress import Progress
from osp_opt.cache.policy import CachePolicy
from osp_opt.options import SearchCacheOptions
from osp_opt.pipelines.maker import Request
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.trials import Trials, Variant
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel
from osp_opt.tiny.prompts import load_prompts


def main(folder: Path) -> None:
    """Time both stages and leave seconds.json (rank 0)."""
    work = json.loads((folder / "work.json").read_text())
    device = Device.open(work["common"]["device"], int(os.environ.get("LOCAL_RANK", "0")))
    with Parallel.open(device) as parallel:
        options = SearchCacheOptions(**work["common"], workdir=folder)
        progress = Progress(parallel.rank, interactive=False)
        context = WorkerContext(device, parallel, folder, progress)
        maker = VideoMaker(options, context)
        prompts = load_prompts("verification")[: work["videos"]]
        requests = [Request(prompt, work["seed"]) for prompt in prompts]
        for request in requests:
            maker.embed(request.prompt)
        maker.decode(maker.denoise(requests[0], TimestepSchedule.uniform(3)).latents)
        full = TimestepSchedule(TimestepSchedule.uniform(work["steps"]).timesteps)
        half = TimestepSchedule(TimestepSchedule.uniform(work["half"]).timesteps)
        policy = CachePolicy.four_field(1, work["blocks"] - 2, 0, 2)
        steps = Trials(maker, Variant(full), _inside(context, folder / "steps"))
        cache = Trials(maker, Variant(full), _inside(context, folder / "cache"), options)
        cached = [Variant(full, policy)] * len(requests)
        seconds = {
            "steps": _timed(parallel, lambda: steps.compared([Variant(half)], requests)),
            "cache": _timed(parallel, lambda: cache.errors(cached, requests)),
        }
        if parallel.is_main:
            (folder / "seconds.json").write_text(json.dumps(seconds))
        parallel.barrier()


def _inside(context: WorkerContext, folder: Path) -> WorkerContext:
    return WorkerContext(context.device, context.parallel, folder, context.progress)


def _timed(parallel: Parallel, work: Callable[[], Any]) -> float:
    parallel.barrier()
    start = time.perf_counter()
    work()
    parallel.barrier()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(Path(sys.argv[1]))
