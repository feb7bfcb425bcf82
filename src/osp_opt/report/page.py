"""The page: what was read, compared and drawn, in words and tables, through `page.html.j2`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import jinja2

from osp_opt import __version__
from osp_opt.evaluate.job import shown
from osp_opt.quality.intervals import Interval
from osp_opt.quality.loss import visibility
from osp_opt.report.comparison import Comparison, Row
from osp_opt.report.figures import Plot
from osp_opt.report.runs import Material
from osp_opt.report.views import Scene

__all__ = ["build_page", "verdict_of"]

_FIRST = {
    "speedup": "Times faster",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "loss": "Loss",
    "seconds": "Denoising, s",
}
_MORE = {
    "lpips": "LPIPS",
    "all": "All attributes",
    "shape": "Shape",
    "color": "Colour",
    "background": "Background",
    "motion": "Motion",
    "flicker": "Flicker",
}


def build_page(
    found: Material,
    comparison: Comparison | None,
    verdict: Sequence[str],
    scenes: Sequence[Scene],
    plots: Sequence[Plot],
) -> str:
    """The whole file, as text; everything that comes from files is escaped by the template."""
    loader = jinja2.FunctionLoader(_asset)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    rows = () if comparison is None else comparison.rows
    scored = {name: name.replace("_", " ") for row in rows for name in row.figures}
    more = {name: title for name, title in (scored | _MORE).items() if name not in _FIRST}
    return environment.get_template("page.html.j2").render(
        version=__version__,
        style=_asset("page.css"),
        script=_asset("page.js"),
        names=", ".join(folder.name for folder in found.folders),
        verdict=verdict,
        winner=None if comparison is None else comparison.winner,
        tables=[_table(rows, _FIRST), _table(rows, more)],
        scenes=scenes,
        plots=plots,
        promises=list(_promises(found)),
        digests=found.digests,
        documents={
            name: json.dumps(content, indent=2, ensure_ascii=False)
            for name, content in found.documents.items()
        },
    )


def _asset(name: str) -> str:
    return (resources.files("osp_opt.report") / name).read_text(encoding="utf-8")


def verdict_of(comparison: Comparison | None) -> list[str]:
    """What was gained and lost, a sentence for each run, the winner first."""
    if comparison is None or len(comparison.rows) < 2:
        return []
    baseline, *candidates = comparison.rows
    winner = comparison.winner
    none = [f"No run is faster than {baseline.name} and keeps its videos."] if not winner else []
    first = sorted(candidates, key=lambda row: row is not winner)
    return none + [_in_words(row, baseline) for row in first]


def _in_words(row: Row, baseline: Row) -> str:
    parts = []
    if faster := row.figures.get("speedup"):
        parts.append(f"denoises {_told(faster, 2)} times faster than {baseline.name}")
    if near := row.figures.get("psnr"):
        parts.append(f"is {_told(near, 1, ' dB')} from its videos ({visibility(near.estimate)})")
        if row.yardstick is not None:
            parts.append(f"loses {row.yardstick.line(near)}")
    if row.verdict is not None and (loss := row.figures.get("loss")):
        limit = f"{100 * (row.max_loss or 0.0):g} %"
        lost = f"a loss of {loss.text(100, 2, ' %')}, limit {limit}: {row.verdict}"
        parts.append(f"has {lost}")
    return f"{row.name} {', '.join(parts)}." if parts else f"{row.name} was not measured."


def _told(interval: Interval, digits: int, unit: str = "") -> str:
    """A figure in a sentence: of few values their mean, which the table below tells apart."""
    if not interval.tells:
        return f"{interval.estimate:.{digits}f}{unit}"
    return interval.text(digits=digits, unit=unit)


def _table(rows: Sequence[Row], titles: dict[str, str]) -> dict[str, Any]:
    """Columns that hold anything, and for each run its figures as text."""
    columns = [name for name in titles if any(row.figures.get(name) for row in rows)]
    return {
        "titles": [titles[name] for name in columns],
        "rows": [(row, [_cell(row.figures.get(name), name) for name in columns]) for row in rows],
    }


def _cell(interval: Interval | None, name: str) -> str:
    return shown(interval, "psnr" if name == "seconds" else name) or "\N{EN DASH}"


def _promises(found: Material) -> Iterator[tuple[str, str, str, str]]:
    """(file, quantity, what was predicted, what was measured) of everything that was verified."""
    for item in found.policies:
        measured = _interval(item.meta.get("measured"), "speedup")
        if measured is not None and "predicted_speedup" in item.meta:
            predicted = f"{float(item.meta['predicted_speedup']):.2f}"
            yield item.path.name, "times faster", predicted, measured.text(digits=2)
    for schedule in found.schedules:
        search = schedule.meta.get("search")
        expected = _interval(search, "log_predicted_error_over_plain")
        seen = _interval(search, "log_measured_error_over_plain")
        if search and expected is not None and seen is not None:
            what = f"error as a multiple of that of {search.get('plain_steps', 'uniform')} steps"
            yield schedule.path.name, what, expected.exp().text(), seen.exp().text()


def _interval(content: Any, name: str) -> Interval | None:
    value = content.get(name) if isinstance(content, dict) else None
    return Interval.from_json(value) if isinstance(value, dict) else None
