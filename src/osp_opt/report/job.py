"""`osp-opt report`: read the runs, compare, draw, write one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from osp_opt.base.artifacts import atomic_write_text
from osp_opt.base.progress import Progress
from osp_opt.options import ReportOptions
from osp_opt.report.comparison import compare_runs
from osp_opt.report.drawing import require_matplotlib
from osp_opt.report.figures import all_figures
from osp_opt.report.page import build_page, verdict_of
from osp_opt.report.runs import read_runs
from osp_opt.report.views import scenes_of

__all__ = ["run"]


def run(options: ReportOptions, folders: Sequence[Path]) -> int:
    """Write the report of the run folders (`folders_to_report`) and say where it is."""
    require_matplotlib()  # without it nothing is worth the wait
    with Progress(verbosity=options.verbosity) as progress:
        with progress.task("reading the runs", 1):
            found = read_runs(options.places, folders)
        with progress.task("comparing the videos", 1):
            comparison = compare_runs(found, options.reference)
            scenes = [] if comparison is None else scenes_of(comparison, options.max_videos)
        plots = all_figures(found, comparison)
    path = options.report_path
    verdict = verdict_of(comparison)
    atomic_write_text(path, build_page(found, comparison, verdict, scenes, plots))
    size = path.stat().st_size / 1e6
    progress.result(
        [
            *verdict[:1],
            f"report of {len(found.folders)} runs: {path} ({size:.1f} MB); open it in a browser",
        ],
        {"report": str(path), "verdict": verdict},
    )
    return 0
