"""How far the original's own steps are from convergence: the scale by which a loss is read.

The same noise at several times as many steps gives (nearly) the converged video. A faster video
that is nearer to the original than the original is to that one loses less than its steps do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import read_json, write_json
from osp_opt.base.errors import CalibrationError
from osp_opt.base.samplers import MAX_STEPS
from osp_opt.calibration.paths import load_latents
from osp_opt.generate.maker import Request, VideoMaker
from osp_opt.generate.references import LatentStore
from osp_opt.quality.intervals import Interval, mean_ci
from osp_opt.quality.metrics import psnr
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.context import WorkerContext

__all__ = ["Yardstick", "measure_yardstick"]

VIDEOS = 2
FINER = 4  # times the original's steps
_FILE = "yardstick.json"


@dataclass(frozen=True)
class Yardstick:
    """PSNR (dB, over videos) between the original's `steps` steps and `converged` of them."""

    steps: int
    converged: int
    psnr: Interval

    def line(self, own: Interval) -> str:
        """For the terminal, beside the PSNR of something faster to the original's videos."""
        less = own.estimate > self.psnr.estimate
        return (
            f"{'less' if less else 'more'} than {self.steps} steps lose themselves: they are "
            f"{self.psnr.text(digits=1, unit=' dB')} from {self.converged} steps"
        )

    def save(self, folder: Path) -> None:
        """Keep it in a calibration's folder."""
        values = {"steps": self.steps, "converged_steps": self.converged}
        write_json(folder / _FILE, {**values, "psnr": self.psnr.as_json()})

    @classmethod
    def load(cls, folder: Path) -> Yardstick | None:
        """What `save` left in `folder`, or None. Raises CalibrationError for anything else."""
        path = folder / _FILE
        if not path.is_file():
            return None
        values: Any = read_json(path, "yardstick")
        try:
            psnr = Interval.from_json(values["psnr"])
            return cls(int(values["steps"]), int(values["converged_steps"]), psnr)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(f"{path}: not a yardstick of osp-opt; delete it") from error


def yardstick_work(steps: int, videos: int) -> float:
    """What it costs, in videos of `steps` steps."""
    finer = min(FINER * steps, MAX_STEPS)
    return 0.0 if finer < 2 * steps else finer / steps * min(videos, VIDEOS)


def measure_yardstick(
    maker: VideoMaker,
    schedule: TimestepSchedule,
    videos: Sequence[tuple[Request, Path]],
    context: WorkerContext,
) -> Yardstick | None:
    """Sample the first videos in finer steps and compare frames (collective).

    Beside each request stands the file of the original's latents. None where there are too few
    noise levels for finer steps.
    """
    steps = min(FINER * len(schedule), MAX_STEPS)
    if steps < 2 * len(schedule):
        return None
    finer = TimestepSchedule(TimestepSchedule.uniform(steps).timesteps)
    store = LatentStore(context.run_dir / "converged", maker.digest(finer))
    parallel, found = context.parallel, []
    mine = parallel.share(list(videos[:VIDEOS]))
    work = yardstick_work(len(schedule), len(videos))
    what = f"sampling {steps} steps, as a yardstick"
    with context.progress.task(what, len(mine) * steps, work) as task:
        for request, path in mine:
            converged = store.load(request)
            if converged is None:
                made = maker.denoise(request, finer, callback=lambda *_: task.advance())
                converged = made.latents.float().cpu()
                store.save(request, converged)
            else:
                task.advance(steps)
            original = maker.decode(load_latents(path)[None])
            found.append(psnr(original, maker.decode(converged)))
    return Yardstick(len(schedule), steps, mean_ci(parallel.gather_shared(found)))
