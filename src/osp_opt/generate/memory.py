"""How much memory each stage of a job needed, over all ranks: told as a detail, and kept."""

from __future__ import annotations

from osp_opt.base.artifacts import write_json
from osp_opt.pipelines.maker import Maker
from osp_opt.system.context import WorkerContext

__all__ = ["MEMORY_FILE", "report_memory"]

MEMORY_FILE = "memory.json"
GIB = 2**30


def report_memory(maker: Maker | None, context: WorkerContext) -> None:
    """Write `memory.json` into the run folder and tell it as a detail (collective).

    `peak_bytes` has, by stage, one number per rank; None where a rank had no part in the stage.
    A run that finds all its work done, or needs no model, measures nothing and leaves the file.
    """
    ranks = context.parallel.gather_from_ranks({} if maker is None else maker.stages.peaks)
    names = list(dict.fromkeys(name for rank in ranks for name in rank))
    if not names or not context.parallel.is_main:
        return
    peaks = {name: [rank.get(name) for rank in ranks] for name in names}
    what = "resident set" if context.device.name == "cpu" else "allocated by torch"
    write_json(
        context.run_dir / MEMORY_FILE,
        {"device": context.device.name, "measure": what, "peak_bytes": peaks},
    )
    most = {
        name: max(peak for peak in figures if peak is not None)
        for name, figures in peaks.items()
        if any(peak is not None for peak in figures)
    }
    told = ", ".join(f"{name} {peak / GIB:.2f} GiB" for name, peak in most.items())
    context.progress.detail(f"peak memory of a process ({what}): {told}")
