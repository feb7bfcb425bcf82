"""The figures of the report: what each shows, from the artifacts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from osp_opt.calibration import Calibration
from osp_opt.report.drawing import BASE, CACHE, MUTED, STEPS, draw, legend
from osp_opt.report.runs import Material, PolicyFile, ScheduleFile
from osp_opt.report.trials import Trial, pareto_front, speedup_checks, trials_of
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.candidates import StepTable, objectives_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot", "all_figures", "block_changes"]

LENGTHS = (5, 6, 8, 10, 12, 16, 20, 25, 33, 50, 67)  # steps at which the prediction is drawn
LEVELS = 160  # of the grid on which it is made: enough for a curve, and quick
MOST_SCHEDULES = 5
_SAMPLER = "EulerAncestralDiscrete"


@dataclass(frozen=True)
class Plot:
    """A figure with its heading and what to see in it."""

    name: str
    title: str
    caption: str
    svg: str


def all_figures(found: Material) -> list[Plot]:
    """Every figure for which there is material. Raises OptionError without matplotlib."""
    trials = trials_of(found)
    calibration = found.calibrations[0] if found.calibrations else None
    plots = [
        _schedules(found.schedules),
        _errors(calibration, trials, found.schedules),
        None if calibration is None else _heat_map(calibration, found.policies),
        _pareto(trials),
        _predictions(found),
    ]
    return [plot for plot in plots if plot is not None]


def block_changes(calibration: Calibration, lag: int = 0) -> np.ndarray:
    """Error of reusing each block's part of the step before, [blocks, steps]; NaN at the first.

    ||g_{b+1} - g_b||^2 of the recorded changes g, mean over videos; `lag` counts the recorded lags.
    """
    gram = calibration.block_gram[:, :, lag]  # [P K B B]
    own = np.diagonal(gram, axis1=-2, axis2=-1)
    across = np.diagonal(gram, 1, axis1=-2, axis2=-1)
    change = (own[..., 1:] + own[..., :-1] - 2.0 * across).mean(axis=0)
    return np.asarray(change.clip(0.0).T)


def _schedules(schedules: Sequence[ScheduleFile]) -> Plot | None:
    """Searched schedules above the uniform ones of their length, by noise level."""
    if not schedules:
        return None
    distinct = list({item.schedule: item for item in schedules}.values())[:MOST_SCHEDULES]

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows: list[str] = []
        for item in distinct:
            uniform = TimestepSchedule.uniform(len(item.schedule))
            found = "found to be best" if item.schedule == uniform else "searched"
            for schedule, word, color in (
                (item.schedule, found, STEPS),
                (uniform, "uniform", BASE),
            ):
                height = -len(rows)
                sigmas = schedule.sigmas[:-1]
                axes.plot(sigmas, np.full(len(sigmas), height), "|", color=color, markersize=14)
                rows.append(f"{word} {len(schedule)}")
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_yticks([-i for i in range(len(rows))], rows)
        axes.set_ylim(-len(rows) + 0.4, 0.6)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("noise level sigma, sampling runs from left to right")

    return Plot(
        "schedule",
        "Where the steps lie",
        "Each mark is one evaluation of the network. Close marks: the schedule spends steps there.",
        draw(
            "schedule",
            "Noise levels of the searched schedules and of uniform ones of the same length",
            plot,
            height=0.9 + 0.75 * len(distinct),
        ),
    )


def _errors(
    calibration: Calibration | None, trials: Sequence[Trial], schedules: Sequence[ScheduleFile]
) -> Plot | None:
    """Error against the number of steps: predicted from the table, measured by the race."""
    raced = [trial for trial in trials if trial.steps is not None]
    if calibration is None and not raced:
        return None

    def plot(figure: Figure) -> None:
        count = (calibration is not None) + bool(raced)
        places = iter(figure.subplots(1, count, squeeze=False)[0])
        if calibration is not None:
            _draw_predicted(next(places), calibration)
        if raced:
            _draw_raced(next(places), raced, len(schedules) > 0)

    return Plot(
        "errors",
        "Error against the number of steps",
        "Predicted: cost of the best and of the uniform schedule on the table that calibrate "
        "recorded, nothing is sampled. Measured: latent error of every schedule that was sampled, "
        "against the full-length video (geometric mean over videos).",
        draw("errors", "Predicted and measured error by number of steps", plot),
    )


def _draw_predicted(axes: Axes, calibration: Calibration) -> None:
    setting = calibration.metadata.get("setting", {})
    sampler = str(setting.get("sampler", _SAMPLER))
    table = StepTable(calibration, sampler, levels=LEVELS)
    objective = objectives_for(sampler)[0]
    lengths = [n for n in LENGTHS if n < len(calibration.timesteps)] or [2]
    uniform = [table.costs(table.uniform(n).schedule, objective).mean() for n in lengths]
    best = [table.costs(table.best(objective, n).schedule, objective).mean() for n in lengths]
    axes.plot(lengths, uniform, "o-", color=BASE, label="uniform", markersize=4)
    axes.plot(lengths, best, "s-", color=STEPS, label="searched", markersize=4)
    _by_steps(axes, lengths)
    axes.set_title(f"predicted, {objective.label}")
    legend(axes)


def _draw_raced(axes: Axes, raced: Sequence[Trial], searched: bool) -> None:
    even = sorted((t for t in raced if t.is_uniform), key=lambda t: t.steps or 0)
    others = [t for t in raced if not t.is_uniform]
    axes.plot(
        [t.steps or 0 for t in even], [t.error for t in even], "o-", color=BASE, label="uniform"
    )
    axes.plot(
        [t.steps or 0 for t in others],
        [t.error for t in others],
        "s",
        color=STEPS,
        label="candidates" if searched else "others",
        alpha=0.7,
        linestyle="none",
    )
    _by_steps(axes, sorted({t.steps for t in raced if t.steps is not None}))
    axes.set_title("measured, latent error")
    legend(axes)


def _by_steps(axes: Axes, lengths: Sequence[int]) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    few = [n for n in (2, 5, 10, 25, 50, 100) if lengths[0] <= n <= lengths[-1]] or [lengths[0]]
    axes.set_xticks(few, [str(n) for n in few])
    axes.set_xlabel("steps")


def _heat_map(calibration: Calibration, policies: Sequence[PolicyFile]) -> Plot:
    """How much each block's part changes from step to step, and which of it the cache reuses."""
    change = block_changes(calibration)
    chosen = policies[0] if policies else None

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        floor = change[change > 0].min() if np.any(change > 0) else 1.0
        shown = np.ma.masked_invalid(np.log10(np.maximum(change, floor)))
        blocks, steps = change.shape
        extent = (-0.5, steps - 0.5, -0.5, blocks - 0.5)
        image = axes.imshow(
            shown, origin="lower", aspect="auto", cmap="viridis", extent=extent, resample=False
        )
        figure.colorbar(image, ax=axes, label="log10 of the change")
        if chosen is not None:
            cells = reused_cells(chosen, calibration)
            for column, (first, last) in cells:
                axes.add_patch(_frame(column, first, last))
        axes.grid(visible=False)
        axes.set_xlabel("step of the original model (noisiest first)")
        axes.set_ylabel("block")

    region = "" if chosen is None else f" White frames: what {chosen.path.name} reuses."
    return Plot(
        "heatmap",
        "Change of each block from step to step",
        "Dark: the block adds nearly what it added one step before, so reusing it costs little."
        + region,
        draw("heatmap", "Change by block and step, and the cached region", plot),
    )


def reused_cells(item: PolicyFile, calibration: Calibration) -> list[tuple[float, tuple[int, int]]]:
    """(column, block range) of all that is reused, in columns of the calibration's steps.

    A policy for another schedule is placed by its timesteps, where its provenance tells them.
    """
    setting = item.meta.get("setting", {})
    timesteps = setting.get("timesteps") if isinstance(setting, dict) else None
    own = np.asarray(timesteps or calibration.timesteps, dtype=np.float64)
    levels = calibration.timesteps[::-1]
    columns = np.interp(own, levels, np.arange(len(levels))[::-1])
    steps = len(own) if item.policy.is_four_field else min(len(own), len(item.policy.plan))
    return [
        (float(columns[step]), blocks)
        for step in range(steps)
        for blocks in item.policy.reuse_ranges(step)
    ]


def _frame(column: float, first: int, last: int) -> Any:
    from matplotlib.patches import Rectangle

    corner = (column - 0.5, first - 0.5)
    return Rectangle(corner, 1.0, last - first, fill=False, edgecolor="white", linewidth=0.8)


def _pareto(trials: Sequence[Trial]) -> Plot | None:
    """Time against error of every trial of both searches."""
    if not trials:
        return None

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for kind, color, marker, label in (
            ("steps", STEPS, "s", "schedules"),
            ("cache", CACHE, "^", "caches"),
        ):
            own = [trial for trial in trials if trial.kind == kind]
            if not own:
                continue
            axes.plot(
                [t.seconds for t in own],
                [t.error for t in own],
                marker,
                color=color,
                alpha=0.7,
                label=label,
                linestyle="none",
            )
            front = pareto_front(own)
            axes.plot([t.seconds for t in front], [t.error for t in front], "-", color=color)
        axes.set_yscale("log")
        axes.set_xlabel("seconds of denoising per video")
        axes.set_ylabel("latent error")
        legend(axes)

    count = f"{len(trials)} trials" if len(trials) > 1 else "One trial"
    return Plot(
        "pareto",
        "Speed against error, all trials",
        f"{count}; lines join those that no other of their kind beats in both. Schedules are "
        "measured against the full-length video, caches against the uncached video of their own "
        "schedule.",
        draw("pareto", "Seconds per video and latent error of every trial", plot),
    )


def _predictions(found: Material) -> Plot | None:
    """What was predicted, and what was then measured."""
    speedups = speedup_checks(found)
    errors = [
        (item.path.name, search["log_predicted_error_over_uniform"], measured)
        for item in found.schedules
        if isinstance(search := item.meta.get("search"), dict)
        and isinstance(measured := search.get("log_measured_error_over_uniform"), dict)
        and isinstance(search.get("log_predicted_error_over_uniform"), dict)
    ]
    if not speedups and not errors:
        return None

    def plot(figure: Figure) -> None:
        places = iter(figure.subplots(1, bool(speedups) + bool(errors), squeeze=False)[0])
        if speedups:
            axes = next(places)
            for check in speedups:
                below, above = check.measured - check.low, check.high - check.measured
                spread = [[max(below, 0.0)], [max(above, 0.0)]]
                axes.errorbar(check.predicted, check.measured, spread, fmt="^", color=CACHE)
            _diagonal(axes, "speed-up of denoising by caches")
        if errors:
            axes = next(places)
            for _, predicted, measured in errors:
                x, y = (math.exp(part["estimate"]) for part in (predicted, measured))
                low, high = (
                    y if part is None else math.exp(min(part, 50.0))
                    for part in (measured.get("low"), measured.get("high"))
                )
                spread = [[max(y - low, 0.0)], [max(high - y, 0.0)]]
                axes.errorbar(x, y, spread, fmt="s", color=STEPS)
            _diagonal(axes, "error of schedules / uniform's")

    return Plot(
        "predicted",
        "Predicted against measured",
        "On the line: the prediction held. Bars are 95 % intervals.",
        draw("predicted", "Predicted and measured speed-up and error", plot),
    )


def _diagonal(axes: Axes, title: str) -> None:
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], "--", color=MUTED, linewidth=1)
    axes.set_title(title)
    axes.set_xlabel("predicted")
    axes.set_ylabel("measured")
