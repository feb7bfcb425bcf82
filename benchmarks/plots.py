"""The figures beside table.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["draw"]


def draw(results: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figures of all sections that are there; their paths."""
    import matplotlib as mpl

    mpl.use("Agg")
    made = []
    if "steps" in results:
        made.append(_steps(results["steps"]["rows"], folder / "steps.png"))
    if "cache" in results:
        made.append(_curves(results["cache"]["rows"], folder / "cache.png", "Cache, full steps"))
    if "field" in results:
        made.append(_field(results["field"]["rows"], folder / "field.png"))
    if "combined" in results:
        rows = results["combined"]["rows"]
        made.append(_curves(rows, folder / "combined.png", "Steps, cache, and both", "converged"))
    if "combined" in results and "cache" in results:
        rows = [*results["combined"]["rows"], *results["cache"]["rows"]]
        title = "All entrants, by the converged video"
        made.append(_curves(rows, folder / "frontier.png", title, "converged"))
    return made


def _by_method(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    methods: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    return methods


def _style(method: str, number: int) -> dict[str, Any]:
    own = method.startswith(("osp-opt", "dp,", "search-", "optimize", "recipe"))
    marks = "osD^vP*Xhp<>"
    width = 2.2 if own and not method.startswith("dp") else 1.2
    return {
        "marker": marks[number % len(marks)],
        "linewidth": width,
        "linestyle": "-" if own else "--",
        "markersize": 5,
        "capsize": 2,
        "label": method,
    }


def _errors(rows: Sequence[dict[str, Any]], name: str) -> list[list[float]]:
    """Distances to both ends of the interval; none where an end is not known."""
    low, high = [], []
    for row in rows:
        values = row[name]
        low.append(0.0 if values["low"] is None else values["estimate"] - values["low"])
        high.append(0.0 if values["high"] is None else values["high"] - values["estimate"])
    return [low, high]


def _figure() -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8.5, 5.2), dpi=120, layout="constrained")
    axes.grid(alpha=0.3)
    return figure, axes


def _saved(figure: Any, axes: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    axes.legend(fontsize=7.5)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    return path


def _steps(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    figure, axes = _figure()
    for number, (method, own) in enumerate(_by_method(rows).items()):
        own = sorted(own, key=lambda row: row["steps"])
        axes.errorbar(
            [row["steps"] for row in own],
            [row["psnr"]["estimate"] for row in own],
            yerr=_errors(own, "psnr"),
            **_style(method, number),
        )
    axes.set_xlabel("sampling steps")
    axes.set_ylabel("PSNR to the full-length video, dB")
    axes.set_title("Schedules on fresh prompts, coupled noise (95 % intervals)", fontsize=10)
    return _saved(figure, axes, path)


def _curves(rows: Sequence[dict[str, Any]], path: Path, title: str, measure: str = "psnr") -> Path:
    """PSNR over speed: to the full length, or to the converged video (of rows that have it)."""
    rows = [row for row in rows if measure in row]
    figure, axes = _figure()
    for number, (method, own) in enumerate(_by_method(rows).items()):
        own = sorted(own, key=lambda row: row["speedup"]["estimate"])
        axes.errorbar(
            [row["speedup"]["estimate"] for row in own],
            [row[measure]["estimate"] for row in own],
            xerr=_errors(own, "speedup"),
            yerr=_errors(own, measure),
            elinewidth=0.7,
            **_style(method, number),
        )
    axes.set_xlabel("measured speed-up of denoising")
    of = {"psnr": "uncached full-length", "converged": "converged"}[measure]
    axes.set_ylabel(f"PSNR to the {of} video, dB")
    axes.set_title(f"{title} (95 % intervals over prompts)", fontsize=10)
    return _saved(figure, axes, path)


def _field(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """A panel for each base, PSNR over counted work; one legend."""
    import matplotlib.pyplot as plt

    bases = list(dict.fromkeys(row["base"] for row in rows))
    figure, panels = plt.subplots(
        1,
        len(bases),
        figsize=(5.0 * len(bases), 5.6),
        dpi=110,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    styles = {method: _style(method, n) for n, method in enumerate(_by_method(rows))}
    for axes, base in zip(panels[0], bases, strict=True):
        axes.grid(alpha=0.3)
        for method, own in _by_method([row for row in rows if row["base"] == base]).items():
            own = sorted(own, key=lambda row: row["counted"])
            style = {name: value for name, value in styles[method].items() if name != "capsize"}
            axes.plot(
                [row["counted"] for row in own], [row["psnr"]["estimate"] for row in own], **style
            )
        axes.set_title(base, fontsize=10)
        axes.set_xlabel("less work, times (counted)")
    panels[0][0].set_ylabel("PSNR to the plain video, dB")
    figure.legend(
        *panels[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2 * len(bases),
        fontsize=7.5,
    )
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
    return path
