"""Measure the yardstick of a calibration: its first videos again, in finer steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from osp_opt.base.samplers import MAX_STEPS
from osp_opt.generate.references import LatentStore, load_latents
from osp_opt.pipelines.maker import Maker, Request
from osp_opt.quality.intervals import mean_ci
from osp_opt.quality.metrics import psnr
from osp_opt.quality.yardstick import Yardstick
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.context import WorkerContext

__all__ = ["measure_yardstick", "yardstick_work"]

VIDEOS = 2
FINER = 4  # times the original's steps


def yardstick_work(steps: int, videos: int) -> float:
    """What it costs, in videos of `steps` steps."""
    return (_finer(steps) or 0) / steps * min(videos, VIDEOS)


def _finer(steps: int) -> int | None:
    """The steps that stand for convergence; None where there are too few noise levels."""
    finer = min(FINER * steps, MAX_STEPS)
    return finer if finer >= 2 * steps else None


def measure_yardstick(
    maker: Maker,
    schedule: TimestepSchedule,
    videos: Sequence[tuple[Request, Path]],
    context: WorkerContext,
) -> Yardstick | None:
    """Sample the first videos in finer steps and compare frames (collective).

    Beside each request stands the file of the original's latents. None where there are too few
    noise levels for finer steps.
    """
    steps = _finer(len(schedule))
    if steps is None:
        return None
    finer = maker.even(steps)
    store = LatentStore(context.run_dir / "converged", maker.digest(finer))
    few, found = list(videos[:VIDEOS]), []
    maker, context = maker.with_layout(context, len(few))
    parallel = context.parallel
    known = parallel.broadcast_object([r for r, _ in few if store.load(r) is not None])
    mine = parallel.share(few)
    work = yardstick_work(len(schedule), len(videos))
    what = f"sampling {steps} steps, as a yardstick"
    with context.progress.task(what, len(mine) * steps, work) as task:
        for request, path in mine:
            converged = store.load(request) if request in known else None
            if converged is None:
                made = maker.denoise(request, finer, callback=lambda *_: task.advance())
                converged = made.latents.float().cpu()
                if parallel.is_leader:
                    store.save(request, converged)
            else:
                task.advance(steps)
            original = maker.decode(load_latents(path)[None], request.seed)
            found.append(psnr(original, maker.decode(converged, request.seed)))
    setting = maker.setting(schedule).as_json()
    return Yardstick(len(schedule), steps, mean_ci(parallel.gather_shared(found)), setting)
