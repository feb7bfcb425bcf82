"""The page: sections of HTML around what was read, drawn and compared. Everything is escaped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import Any

from osp_opt import __version__
from osp_opt.evaluate.job import shown
from osp_opt.quality.intervals import Interval
from osp_opt.report.comparison import Comparison, Row
from osp_opt.report.figures import Plot
from osp_opt.report.runs import Material
from osp_opt.report.views import Scene, View

__all__ = ["build_page"]

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "img-src data:; media-src data:"
)
_COLUMNS = (
    ("seconds", "Denoising, s", False),
    ("speedup", "Times faster", False),
    ("loss", "Loss", False),
    ("psnr", "PSNR, dB", False),
    ("ssim", "SSIM", False),
    ("lpips", "LPIPS", False),
    ("all", "All attributes", True),
    ("shape", "Shape", True),
    ("color", "Colour", True),
    ("background", "Background", True),
    ("motion", "Motion", True),
    ("flicker", "Flicker", True),
)
_KNOWN = {name for name, _, _ in _COLUMNS}


def build_page(
    found: Material, comparison: Comparison | None, scenes: Sequence[Scene], plots: Sequence[Plot]
) -> str:
    """The whole file, as text."""
    sections = [
        ("videos", "Videos", _videos(scenes)),
        ("figures", "Speed and quality", _table(comparison.rows) if comparison else ""),
        ("searches", "Searches", "".join(map(_figure, plots))),
        ("verdicts", "Verdicts", _verdicts(found)),
        ("provenance", "Provenance", _provenance(found)),
    ]
    present = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in present)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>{content}</section>'
        for name, title, content in present
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>osp-opt report</title><style>{_asset('page.css')}</style></head><body>"
        f"<header><h1>osp-opt report</h1><p>{_subtitle(found, comparison)}</p>"
        f'<nav aria-label="Sections">{links}</nav></header><main>{body}</main>'
        f"<footer>made by osp-opt {escape(__version__)}</footer>"
        f"<script>{_asset('page.js')}</script></body></html>\n"
    )


def _subtitle(found: Material, comparison: Comparison | None) -> str:
    names = escape(", ".join(folder.name for folder in found.folders))
    if comparison is None or len(comparison.rows) < 2:
        return f"From {names}."
    best = max(
        comparison.rows[1:],
        key=lambda row: s.estimate if (s := row.figures.get("speedup")) else 0.0,
    )
    faster, fidelity = best.figures.get("speedup"), best.figures.get("psnr")
    parts = [f"{faster.estimate:.2f} times faster denoising"] if faster else []
    parts += [f"{fidelity.estimate:.1f} dB to the baseline"] if fidelity else []
    return f"<strong>{escape(best.name)}: {', '.join(parts)}.</strong> From {names}."


def _videos(scenes: Sequence[Scene]) -> str:
    if not scenes:
        return ""
    choices = "".join(
        f'<option value="{i}">{escape(scene.title)}</option>' for i, scene in enumerate(scenes)
    )
    controls = (
        '<div class="controls" hidden>'
        f'<label>Prompt <select id="prompt">{choices}</select></label>'
        '<div class="player">'
        '<button type="button" id="back" aria-label="one frame back">&#9664;&#65038;</button>'
        '<button type="button" id="play" aria-pressed="false">Play</button>'
        '<button type="button" id="forward" aria-label="one frame on">&#9654;&#65038;</button>'
        '<input type="range" id="scrub" min="0" value="0" step="1" aria-label="frame">'
        '<output id="frame" for="scrub"></output>'
        '<label>Speed <select id="rate"><option value="1">1x</option>'
        '<option value="0.5">1/2</option><option value="0.25">1/4</option></select></label>'
        "</div><p class='hint'>Keys: space plays, arrows step by a frame, Home and End jump, "
        "N and P change the prompt.</p></div>"
    )
    return controls + "".join(_scene(scene) for scene in scenes)


def _scene(scene: Scene) -> str:
    views = "".join(_view(view) for view in scene.views)
    return (
        f'<article class="scene" data-frames="{scene.frames}" data-fps="{scene.fps:g}">'
        f'<h3>{escape(scene.title)}</h3><div class="views">{views}</div></article>'
    )


def _view(view: View) -> str:
    label = escape(f"{view.caption}, {view.detail}", quote=True)
    media = (
        f'<img alt="{label}" src="{view.uri}">'
        if view.is_image
        else f'<video controls muted playsinline preload="auto" aria-label="{label}" '
        f'src="{view.uri}"></video>'
    )
    caption = f"<strong>{escape(view.caption)}</strong> {escape(view.detail)}"
    return f"<figure>{media}<figcaption>{caption}</figcaption></figure>"


def _table(rows: Sequence[Row]) -> str:
    extra = sorted({name for row in rows for name in row.figures} - _KNOWN)
    columns = [*_COLUMNS, *((name, name.replace("_", " "), True) for name in extra)]
    columns = [c for c in columns if any(row.figures.get(c[0]) is not None for row in rows)]
    head = "".join(
        f'<th scope="col">{escape(title)}{" (change)" if change else ""}</th>'
        for _, title, change in columns
    )
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}<small>{escape(row.how)}</small></th>'
        + "".join(f"<td>{_cell(row.figures.get(name), name)}</td>" for name, _, _ in columns)
        + f"<td>{escape(row.measured_by)}</td></tr>"
        for row in rows
    )
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="table of runs"><table><thead>'
        f'<tr><th scope="col">Run</th>{head}<th scope="col">Measured by</th></tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
        '<p class="hint">In brackets: 95 % intervals over prompts, of pairs of the same prompt and '
        "seed (bootstrap; Newcombe's for attributes). (change): candidate less baseline. Loss: "
        "share of quality lost.</p>"
    )


def _cell(interval: Interval | None, name: str) -> str:
    return escape(shown(interval, "psnr" if name == "seconds" else name)) or "&ndash;"


def _figure(plot: Plot) -> str:
    return (
        f'<figure class="plot" id="{plot.name}"><h3>{escape(plot.title)}</h3>'
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(plot.title)}">'
        f"{plot.svg}</div><figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def _verdicts(found: Material) -> str:
    items = []
    for evaluation in found.evaluations:
        sides = [escape(str(evaluation[side]["folder"])) for side in ("candidate", "reference")]
        loss = evaluation["loss"]
        text = f"{sides[0]} against {sides[1]}: loss of {escape(str(loss['measure']))} "
        text += f"{100 * float(loss['share']['estimate']):.1f} %"
        bounds = loss["share"]["low"], loss["share"]["high"]
        if None not in bounds:
            text += " [" + ", ".join(f"{100 * float(bound):.1f}" for bound in bounds) + "]"
        if evaluation.get("verdict"):
            limit = 100 * float(evaluation["max_loss"])
            text += f"; limit {limit:g} %: <strong>{escape(evaluation['verdict'])}</strong>"
        notes = "".join(f"<li>{escape(note)}</li>" for note in evaluation["not_measured"])
        items.append(f"<p>{text}</p>" + (f"<p>Not measured:</p><ul>{notes}</ul>" if notes else ""))
    return "".join(items)


def _provenance(found: Material) -> str:
    files = "".join(
        f"<tr><th scope='row'>{escape(name)}</th><td><code>{digest}</code></td></tr>"
        for name, digest in found.digests.items()
    )
    table = (
        "<details><summary>Files and their SHA-256</summary><div class='wide' tabindex='0'>"
        f"<table><tbody>{files}</tbody></table></div></details>"
    )
    return table + "".join(_documents(found.documents.items()))


def _documents(documents: Iterable[tuple[str, Any]]) -> Iterable[str]:
    for name, content in documents:
        text = escape(json.dumps(content, indent=2, ensure_ascii=False))
        yield f"<details><summary>{escape(name)}</summary><pre tabindex='0'>{text}</pre></details>"


def _asset(name: str) -> str:
    place = resources.files("osp_opt") / "assets" / "report" / name
    return place.read_text(encoding="utf-8")
