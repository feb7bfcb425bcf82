"""What a search will cost, said before it starts, and the measure of its progress."""

from __future__ import annotations

from typing import Any

from osp_opt.calibration.source import Source
from osp_opt.system.context import WorkerContext

__all__ = ["say_cost"]


def say_cost(context: WorkerContext, source: Source[Any], choosing: float, judging: float) -> None:
    """Tell how many full-length videos' work lies ahead, at most, and how long that takes here.

    The time is that of the calibration's own videos, so it holds on the machine that made them.
    """
    work = choosing + judging
    told = f"at most {work:.0f} generations: {choosing:.0f} to choose, {judging:.0f} to judge"
    seconds = source.seconds_per_video
    if seconds is not None:
        minutes = work * seconds / 60.0 / context.parallel.world_size
        told += f"; about {minutes:.0f} minutes here" if minutes >= 1.5 else "; about a minute here"
    context.progress.say(told)
    context.progress.plan(work)
