"""Figures as inline SVG that take the page's colours, light or dark, by matplotlib.

Figures are drawn in stand-in colours, which are replaced by the page's CSS variables afterwards;
text stays text, so that it can be read aloud, searched and selected.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from osp_opt.base.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["BASE", "CACHE", "MUTED", "STEPS", "Draw", "draw", "legend", "require_matplotlib"]

TEXT = "#010203"
MUTED = "#020304"
BASE = "#030405"
STEPS = "#040506"
CACHE = "#050607"
_VARIABLES = {
    TEXT: "currentColor",
    MUTED: "var(--muted)",
    BASE: "var(--base)",
    STEPS: "var(--steps)",
    CACHE: "var(--cache)",
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "osp-opt",  # the same figure gives the same file
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": MUTED,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "grid.color": MUTED,
    "grid.alpha": 0.25,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.unicode_minus": False,
}

WIDTH = 4.6  # inches

Draw = Callable[["Figure"], None]


def draw(name: str, text: str, plot: Draw, height: float = 3.2) -> str:
    """The SVG of what `plot` draws on an empty figure, in inches.

    name: a word, unique on the page; text: what the figure shows, for those who cannot see it.
    Raises OptionError when matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasSVG(figure)
        plot(figure)
        buffer = io.StringIO()
        nothing: dict[str, Any] = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    return _inline(buffer.getvalue(), name, text)


def require_matplotlib() -> None:
    """Raises OptionError when it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionError(
            "report: its figures need matplotlib; install it with pip install 'osp-opt[report]'"
        ) from error


def legend(axes: Axes) -> None:
    """A legend, where something has a label."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")


def _inline(svg: str, name: str, text: str) -> str:
    """The bare element: no declarations, no namespaces (HTML knows them), names of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r'(?<=\sid=")', f"{name}-", svg)
    svg = re.sub(r"(?<=url\(#)", f"{name}-", svg)
    svg = re.sub(r'(?<=href="#)', f"{name}-", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    size = re.search(r'viewBox="([^"]*)"', svg)
    box = size.group(1) if size else "0 0 520 245"
    opening = f'<svg role="img" aria-label="{escape(text, quote=True)}" viewBox="{box}"'
    return opening + svg[svg.index(">") :]
