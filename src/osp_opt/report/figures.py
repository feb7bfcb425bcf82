"""The figures of the report: what each shows, from the artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from osp_opt.base.artifacts import setting_of
from osp_opt.calibration import Calibration
from osp_opt.quality.intervals import Interval
from osp_opt.report.comparison import Comparison
from osp_opt.report.drawing import BASE, CACHE, STEPS, draw, legend
from osp_opt.report.runs import Material, PolicyFile, ScheduleFile
from osp_opt.sampling.schedule import TimestepSchedule, own_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plot", "all_figures", "block_changes"]

_NOISIEST = 1e3  # sigma: pure noise, which flow matching starts from, has none that fits on an axis
MOST_SCHEDULES = 5


@dataclass(frozen=True)
class Plot:
    """A figure with its heading and what to see in it."""

    name: str
    title: str
    caption: str
    svg: str


def all_figures(found: Material, comparison: Comparison | None) -> list[Plot]:
    """Every figure for which there is material. Raises OptionError without matplotlib."""
    calibration = found.calibrations[0] if found.calibrations else None
    plots = [
        _quality(found, comparison),
        *map(_errors, found.curves[:1]),
        _schedules(found.schedules),
        None if calibration is None else _heat_map(calibration, found.policies),
    ]
    return [plot for plot in plots if plot is not None]


def block_changes(calibration: Calibration) -> np.ndarray:
    """Error of reusing each block's part of the step before, [blocks, steps]; NaN at the first.

    ||g_{b+1} - g_b||^2 of the recorded changes g, mean over videos.
    """
    gram = calibration.block_gram[:, :, 0]  # [P K B B]
    own = np.diagonal(gram, axis1=-2, axis2=-1)
    across = np.diagonal(gram, 1, axis1=-2, axis2=-1)
    change = (own[..., 1:] + own[..., :-1] - 2.0 * across).mean(axis=0)
    return np.asarray(change.clip(0.0).T)


def _schedules(schedules: Sequence[ScheduleFile]) -> Plot | None:
    """Searched schedules by noise level, Open-Sora-Plan's above the uniform ones of their length.

    (Of other models the files do not say how their schedulers space steps, nor, but of flow
    matching, which noise level a timestep is.)
    """
    known = [item for item in schedules if not _of_another_table(item)]
    if not known:
        return None
    distinct = list({item.schedule: item for item in known}.values())[:MOST_SCHEDULES]
    flow = all(item.schedule.scale != own_scale() for item in distinct)

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows: list[str] = []
        for item in distinct:
            shown = [(item.schedule, "searched", STEPS)]
            if item.schedule.scale == own_scale():
                uniform = TimestepSchedule.uniform(len(item.schedule))
                found = "found to be best" if item.schedule == uniform else "searched"
                shown = [(item.schedule, found, STEPS), (uniform, "uniform", BASE)]
            for schedule, word, color in shown:
                height = -len(rows)
                sigmas = schedule.sigmas[:-1].clip(max=_NOISIEST)
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
            "Noise levels of the searched schedules"
            + ("" if flow else " and of uniform ones of the same length"),
            plot,
            height=0.9 + 0.75 * len(distinct),
        ),
    )


def _of_another_table(item: ScheduleFile) -> bool:
    of_a_pipeline = "own_steps" in setting_of(item.meta)
    return of_a_pipeline and item.schedule.scale == own_scale()


def _errors(curve: Mapping[str, Any]) -> Plot:
    """Error against the number of steps, as `search-steps` left it: measured and predicted."""
    points = curve["points"]
    plain = curve.get("plain_steps", "uniform")
    colors = {"plain": BASE, "dp": STEPS, "ays": CACHE}
    words = {"plain": plain, "dp": "searched", "ays": "ays"}

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for name, color in colors.items():
            names = (name, "uniform") if name == "plain" else (name,)  # as earlier files call it
            own = [point for point in points if point["schedule"] in names]
            predicted = [point for point in own if point["kind"] == "predicted"]
            if predicted:
                lengths, errors = zip(*((p["steps"], p["error"]) for p in predicted), strict=True)
                axes.plot(lengths, errors, "--", color=color, label=f"{words[name]}, predicted")
            measured = [point for point in own if point["kind"] != "predicted"]
            if measured:
                spread = _bars([(p["error"], p["low"], p["high"]) for p in measured])
                lengths, errors = zip(*((p["steps"], p["error"]) for p in measured), strict=True)
                label = f"{words[name]}, measured"
                axes.errorbar(lengths, errors, spread, fmt="o", color=color, capsize=3, label=label)
        _by_steps(axes, sorted({point["steps"] for point in points}))
        axes.set_ylabel("squared error of latents")
        legend(axes)

    scaled = curve.get("predictions_scaled_to_plain")
    return Plot(
        "errors",
        "Error against the number of steps",
        f"To the video of {curve['reference_steps']} steps. Bars are 95 % intervals over prompts; "
        + (
            f"predictions are scaled by one factor to the measurements of {plain} steps."
            if scaled
            else "predictions are in a unit of their own."
        ),
        draw("errors", "Predicted and measured error by number of steps", plot),
    )


def _bars(values: Sequence[tuple[float, float | None, float | None]]) -> list[list[float]]:
    """(estimate, low, high) as matplotlib wants it: lengths below and above; an unknown is none."""
    below = [0.0 if low is None else max(at - low, 0.0) for at, low, _ in values]
    above = [0.0 if high is None else max(high - at, 0.0) for at, _, high in values]
    return [below, above]


def _bar(interval: Interval) -> list[list[float]]:
    bounds = (interval.low, interval.high) if interval.tells else (None, None)
    return _bars([(interval.estimate, *bounds)])


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
        from matplotlib.ticker import MaxNLocator

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
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))

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
    timesteps = setting_of(item.meta).get("timesteps")
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


def _quality(found: Material, comparison: Comparison | None) -> Plot | None:
    """Speed-up against PSNR of all that was measured, each against its own baseline."""
    rows = () if comparison is None else comparison.rows[1:]
    runs = [(row.figures.get("speedup"), row.figures.get("psnr")) for row in rows]
    searches = [item.meta.get("search") or {} for item in found.schedules]
    schedules = [_verified(search.get("verification"), "searched") for search in searches]
    policies = [_verified(item.meta, "measured") for item in found.policies]
    groups = [
        ("finished runs", BASE, "o", _whole(runs)),
        ("schedules", STEPS, "s", _whole(schedules)),
        ("caches", CACHE, "^", _whole(policies)),
        ("recipes", STEPS, "D", _whole([_verified(meta, "measured") for meta in found.recipes])),
    ]
    if not any(points for *_, points in groups):
        return None

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for label, color, marker, points in groups:
            for number, (faster, near) in enumerate(points):
                axes.errorbar(
                    faster.estimate,
                    near.estimate,
                    _bar(near),
                    _bar(faster),
                    fmt=marker,
                    color=color,
                    label=None if number else label,
                )
        axes.set_xlabel("times faster denoising")
        axes.set_ylabel("PSNR, dB")
        legend(axes)

    return Plot(
        "quality",
        "Speed against quality",
        "Higher and further right is better. Finished runs are measured against the baseline, "
        "schedules and recipes against the full-length video, caches against no cache on their own "
        "schedule; "
        "bars are 95 % intervals.",
        draw("quality", "Speed-up and PSNR of everything that was measured", plot),
    )


def _whole(
    points: Sequence[tuple[Interval | None, Interval | None]],
) -> list[tuple[Interval, Interval]]:
    return [(faster, near) for faster, near in points if faster is not None and near is not None]


def _verified(content: Any, part: str) -> tuple[Interval | None, Interval | None]:
    """(speed-up, PSNR) that a search measured on prompts that did not choose."""
    found = content.get(part) if isinstance(content, dict) else None
    if not isinstance(found, dict) or None in (found.get("speedup"), found.get("psnr")):
        return None, None
    return Interval.from_json(found["speedup"]), Interval.from_json(found["psnr"])
