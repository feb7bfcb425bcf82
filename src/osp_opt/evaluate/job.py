"""`osp-opt evaluate`: pair, measure, judge; a table on the terminal and JSON beside it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from osp_opt import __version__
from osp_opt.base.artifacts import remove_partial, setting_of, write_json
from osp_opt.base.progress import Progress
from osp_opt.base.terminal import make_console
from osp_opt.evaluate.cvvdp import color_video_vdp
from osp_opt.evaluate.files import EVALUATION_FORMAT
from osp_opt.evaluate.finished import Finished
from osp_opt.evaluate.lpips import Lpips
from osp_opt.evaluate.measures import Measured, measure_pair
from osp_opt.evaluate.pairs import Pair, pair_videos
from osp_opt.evaluate.summary import (
    LOWER_IS_BETTER,
    SHARES,
    Metric,
    Summary,
    summarise,
)
from osp_opt.evaluate.vbench import vbench_scores
from osp_opt.generate.manifest import Take, VideoFile
from osp_opt.options import EvaluateOptions, calibration_of, following
from osp_opt.quality.intervals import Interval
from osp_opt.quality.loss import CHANGED_PSNR, EXIT_CODES, FEWEST_JUDGED, Verdict
from osp_opt.quality.yardstick import Yardstick

__all__ = ["Evaluation", "evaluate", "run"]

UNKNOWN_FPS = 24.0  # frames per second, where no manifest says how fast videos are shown


@dataclass(frozen=True)
class Evaluation:
    """The outcome: what was compared, every pair, the summary, and what could not be measured."""

    reference: Take
    candidate: Take
    measured: tuple[Measured, ...]
    summary: Summary
    max_loss: float | None
    notes: tuple[str, ...]
    yardstick: Yardstick | None = None

    @property
    def verdict(self) -> Verdict | None:
        """kept, lost or undecided; None without a limit."""
        return None if self.max_loss is None else self.summary.loss.verdict(self.max_loss)

    def as_json(self) -> dict[str, Any]:
        """Everything, for the file."""
        loss = self.summary.loss
        return {
            "format": EVALUATION_FORMAT,
            "version": __version__,
            "reference": _about(self.reference),
            "candidate": _about(self.candidate),
            "pairs": self.summary.pairs,
            "prompts": self.summary.prompts,
            "speedup": None if self.summary.speedup is None else self.summary.speedup.as_json(),
            "metrics": {metric.name: metric.as_json() for metric in self.summary.metrics},
            "loss": loss.as_json(),
            "max_loss": self.max_loss,
            "verdict": self.verdict,
            "yardstick": None if self.yardstick is None else self.yardstick.as_json(),
            "not_measured": list(self.notes),
            "videos": [measured.as_json() for measured in self.measured],
        }


def run(options: EvaluateOptions, reference: Take, candidate: Take) -> int:
    """Evaluate, print, write; 0, or 3 (lost) or 4 (undecided) where a limit was given."""
    done = Finished(options.json_path)
    with Progress(verbosity=options.verbosity) as progress:
        found = evaluate(reference, candidate, options, progress, done)
    values = found.as_json()
    write_json(options.json_path, values)
    remove_partial(options.json_path)
    done.clear()
    if options.verbosity in ("normal", "verbose"):
        _show(make_console(), found)
    progress.result(
        _result(found, options.json_path),
        {name: part for name, part in values.items() if name != "videos"},
        following(options, "report"),
    )
    return 0 if found.verdict is None else EXIT_CODES[found.verdict]


def evaluate(
    reference: Take,
    candidate: Take,
    options: EvaluateOptions,
    progress: Progress,
    done: Finished,
) -> Evaluation:
    """Measure every pair and judge; what `done` holds is not measured again.

    Raises InputError for folders that cannot be compared.
    """
    pairs = pair_videos(reference, candidate)
    notes: list[str] = []
    lpips = Lpips.open() if options.lpips else None
    if isinstance(lpips, str):
        notes.append(lpips)
        lpips = None
    measured = []
    with progress.task("comparing", len(pairs)) as task:
        for pair in pairs:
            found = done.pair(pair, lpips is not None)
            if found is None:
                found = measure_pair(pair, lpips)
                done.add_pair(found, lpips is not None)
            measured.append(found)
            task.advance()
    if options.cvvdp_python is None:
        notes.append("ColorVideoVDP: no --cvvdp-python given")
    else:
        fps = candidate.fps or reference.fps or UNKNOWN_FPS
        measured = _with_jod(measured, options.cvvdp_python, fps, done, progress)
    if options.vbench_python is None:
        notes.append("VBench: no --vbench-python given")
    else:
        progress.say(f"VBench scores {2 * len(pairs)} videos, which takes a while")
        measured = _with_vbench(measured, pairs, options, done)
    if any(pair.through_codec for pair in pairs):
        notes.append(
            "differences finer than the videos' codec: sample both with --raw to compare frames "
            "as they were made"
        )
    if not measured[0].frame_ssim:
        notes.append("SSIM: frames are smaller than its window")
    if "all" not in measured[0].reference:
        notes.append("attributes as asked: the prompts are no captions of the bundled model")
    summary = summarise(measured)
    if summary.speed_note is not None:
        notes.append(summary.speed_note)
    return Evaluation(
        reference,
        candidate,
        tuple(measured),
        summary,
        options.max_loss,
        tuple(notes),
        _yardstick(options.workdir, reference),
    )


def _yardstick(workdir: Path, reference: Take) -> Yardstick | None:
    """What the working folder's calibration says of the reference's own steps."""
    setting = setting_of(reference.settings)
    found = Yardstick.load(calibration_of(workdir) or workdir / "calibration")
    return found if found is not None and setting and found.fits(setting) else None


def _with_jod(
    measured: list[Measured], python: Path, fps: float, done: Finished, progress: Progress
) -> list[Measured]:
    found = {m.pair: done.jod(m.pair) for m in measured}
    todo = [pair for pair, jod in found.items() if jod is None]
    if todo:
        with color_video_vdp(python) as score, progress.task("ColorVideoVDP", len(todo)) as task:
            for pair in todo:
                reference, candidate = pair.frames()
                found[pair] = jod = score(candidate, reference, fps)
                done.add_jod(pair, jod)
                task.advance()
    return [replace(m, between={**m.between, "jod": found[m.pair] or 0.0}) for m in measured]


def _with_vbench(
    measured: list[Measured], pairs: list[Pair], options: EvaluateOptions, done: Finished
) -> list[Measured]:
    python = options.vbench_python
    assert python is not None

    def scored(videos: list[VideoFile]) -> list[dict[str, float]]:
        """By dimension, so that a killed run keeps those that are finished."""
        scores: list[dict[str, float]] = [{} for _ in videos]
        for dimension in options.vbench_dimensions:
            found = done.vbench(dimension, videos)
            if found is None:
                found = vbench_scores(python, videos, dimension)
                done.add_vbench(dimension, videos, found)
            for values, value in zip(scores, found, strict=True):
                values[dimension] = value
        return scores

    before = scored([pair.reference for pair in pairs])
    after = scored([pair.candidate for pair in pairs])
    return [
        replace(m, reference={**m.reference, **a}, candidate={**m.candidate, **b})
        for m, a, b in zip(measured, before, after, strict=True)
    ]


def _about(videos: Take) -> dict[str, Any]:
    return {
        "folder": str(videos.folder),
        "take": videos.label,
        "videos": len(videos.videos),
        "manifest": videos.settings or {},
    }


def _show(console: Console, found: Evaluation) -> None:
    """The table of all measures, and what was not measured."""
    summary = found.summary
    table = Table(
        title=f"{escape(str(found.candidate.address))} against "
        f"{escape(str(found.reference.address))}, {summary.pairs} pairs",
        title_justify="left",
    )
    for heading in ("measure", "reference", "candidate", "difference", "worst", "worse on"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for metric in summary.metrics:
        name, difference = metric.name, metric.difference
        both = [
            shown(part, name, bounds=difference is None)
            for part in (metric.reference, metric.candidate)
        ]
        worst = f"{metric.worst:.{2 if name in ('psnr', 'jod') else 4}f}"
        worse = "" if metric.worse is None else f"{metric.worse} of {metric.candidate.count}"
        row = (*both, shown(difference, name), "" if name in SHARES else worst, worse)
        table.add_row(_title(metric), *row)
    console.print(table)
    for note in found.notes:
        console.print(f"[dim]not measured: {escape(note)}[/]")


def _result(found: Evaluation, path: Path) -> list[str]:
    """What was gained and lost, in words."""
    summary = found.summary
    lines = [f"figures: {path}"]
    near = summary.metric("psnr")
    if near is not None and near.candidate.count > 1:
        named = "" if near.worst_prompt is None else f", {near.worst_prompt!r:.80}"
        lines.append(f"the worst: {near.worst:.1f} dB{named}")
    if near is not None and found.yardstick is not None:
        lines.append(found.yardstick.line(near.candidate))
    if near is not None and near.candidate.estimate < CHANGED_PSNR:
        lines.append(f"warning: {near.candidate.estimate:.1f} dB is visibly another video")
    if summary.speedup is not None:
        lines.append(f"denoising {summary.speedup.text(digits=2, unit=' times')} faster")
    lines.append(summary.loss.line())
    if found.verdict is not None:
        limit = f"{100 * (found.max_loss or 0.0):g} %"
        lines.append(
            {
                "kept": f"kept: the loss stays within {limit}",
                "lost": f"lost: more than {limit} is lost",
                "undecided": f"undecided: neither that {limit} is kept nor that more is lost is "
                f"shown; {max(FEWEST_JUDGED, 2 * summary.loss.share.count)} prompts may tell",
            }[found.verdict]
        )
    return lines


def _title(metric: Metric) -> str:
    titles = {
        "psnr": "PSNR (dB)",
        "ssim": "SSIM",
        "lpips": "LPIPS",
        "jod": "ColorVideoVDP (JOD)",
        "all": "all attributes",
    }
    arrow = "lower is better" if metric.name in LOWER_IS_BETTER else ""
    title = titles.get(metric.name, metric.name.replace("_", " "))
    return f"{title} ({arrow})" if arrow else title


def shown(interval: Interval | None, name: str, bounds: bool = True) -> str:
    """An interval as text: attributes as counts, dB and ratios with two digits, else four."""
    if interval is None:
        return ""
    if name in SHARES:
        counted = f"{interval.estimate * interval.count:g}"
        return f"{counted} of {interval.count}" if bounds or interval.low >= 0 else counted
    share = name == "loss"
    factor, digits, unit = (100, 2, " %") if share else (1, 2, "")
    if name not in ("psnr", "jod", "speedup", "loss"):
        digits = 4
    if not bounds:
        return f"{interval.estimate:.{digits}f}"
    return interval.text(factor, digits, unit, counted=False)
