"""`osp-opt report`: read the runs, compare, draw, write one file."""

from __future__ import annotations

from pathlib import Path

from rich.markup import escape

from osp_opt.base.artifacts import atomic_write_text, check_place
from osp_opt.base.ffmpeg import check_ffmpeg
from osp_opt.base.terminal import make_console
from osp_opt.options import ReportOptions
from osp_opt.report.comparison import compare_runs
from osp_opt.report.drawing import require_matplotlib
from osp_opt.report.figures import all_figures
from osp_opt.report.page import build_page
from osp_opt.report.runs import read_runs
from osp_opt.report.views import scenes_of

__all__ = ["run"]


def run(options: ReportOptions) -> int:
    """Write the report and say where it is."""
    console = make_console()
    check_place(options.report_path, "--out" if options.out else "the report")
    check_ffmpeg()
    require_matplotlib()  # without it nothing is worth the wait
    with console.status("reading the runs"):
        found = read_runs([Path(place) for place in options.runs] or [options.workdir])
    with console.status("comparing the videos"):
        comparison = compare_runs(found, options.reference)
        scenes = [] if comparison is None else scenes_of(comparison, options.max_videos)
    plots = all_figures(found, comparison)
    path = options.report_path
    atomic_write_text(path, build_page(found, comparison, scenes, plots))
    size = path.stat().st_size / 1e6
    console.print(
        f"report of {len(found.folders)} runs: {escape(str(path))} ({size:.1f} MB); "
        "open it in a browser",
        soft_wrap=True,
    )
    return 0
