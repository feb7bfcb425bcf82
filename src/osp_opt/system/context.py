"""What a job gets besides its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from osp_opt.base.progress import Progress
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel

__all__ = ["WorkerContext"]


@dataclass(frozen=True)
class WorkerContext:
    """This rank's device, its place among the ranks, the run folder, and where to tell progress."""

    device: Device
    parallel: Parallel
    run_dir: Path
    progress: Progress
