"""Which runs are compared with which, and the figures of each: speed and quality with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osp_opt.base.errors import FileError, PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.evaluate.measures import measure_pair
from osp_opt.evaluate.pairs import Pair, VideoSet
from osp_opt.evaluate.summary import Summary, summarise
from osp_opt.quality.intervals import Interval, bootstrap_ci
from osp_opt.report.runs import Material
from osp_opt.sampling.schedule import TimestepSchedule

__all__ = ["Comparison", "Row", "compare_runs", "describe"]

_SAME = 1e-3  # of a timestep: what a schedule file's decimals may lose


@dataclass(frozen=True)
class Row:
    """One run in the table: how it was made, and figures by name (None: not known)."""

    name: str
    how: str
    figures: Mapping[str, Interval | None]
    measured_by: str = ""


@dataclass(frozen=True)
class Comparison:
    """The baseline, the candidates with the pairs that they share with it, and the table."""

    baseline: VideoSet
    candidates: tuple[tuple[VideoSet, tuple[Pair, ...]], ...]
    rows: tuple[Row, ...]


def compare_runs(found: Material, reference: Path | None) -> Comparison | None:
    """Choose the baseline and compare every other run of the same prompts and seeds with it.

    Figures come from the evaluation of the two folders where there is one, else they are measured
    from the videos now. None when no run has videos. Raises what opening and reading raise.
    """
    sets = _all_sets(found)
    if reference is not None:
        baseline = VideoSet.open(reference, "--reference")
    elif sets:
        baseline = _baseline(found, sets)
    else:
        return None
    rows = [_baseline_row(baseline)]
    candidates = []
    for videos in sets:
        if videos.folder.resolve() == baseline.folder.resolve():
            continue
        pairs = _shared(baseline, videos)
        if not pairs:
            continue
        candidates.append((videos, tuple(pairs)))
        rows.append(_row(found, baseline, videos, pairs))
    return Comparison(baseline, tuple(candidates), tuple(rows))


def describe(manifest: Mapping[str, Any] | None) -> str:
    """How the videos of a manifest were made, in a few words."""
    setting = (manifest or {}).get("setting")
    if not isinstance(setting, dict) or not isinstance(setting.get("timesteps"), list):
        return ""
    timesteps = [float(t) for t in setting["timesteps"]]
    even = TimestepSchedule.uniform(len(timesteps)).timesteps
    searched = max(abs(a - b) for a, b in zip(timesteps, even, strict=True)) > _SAME
    words = f"{len(timesteps)} {'searched' if searched else 'uniform'} steps"
    cache = (manifest or {}).get("cache")
    if cache is None:
        return f"{words}, no cache"
    try:
        return f"{words}, cache: {CachePolicy.from_json(cache)}"
    except PolicyError:
        return f"{words}, a cache"


def _all_sets(found: Material) -> list[VideoSet]:
    """The runs' videos, and those that evaluations name and that are still there."""
    sets = list(found.videos)
    for evaluation in found.evaluations:
        for side in ("reference", "candidate"):
            folder = Path(str(evaluation[side]["folder"]))
            known = [videos.folder.resolve() for videos in sets]
            if folder.is_dir() and folder.resolve() not in known:
                sets.append(VideoSet.open(folder, side))
    return sets


def _baseline(found: Material, sets: list[VideoSet]) -> VideoSet:
    for evaluation in found.evaluations:
        folder = Path(str(evaluation["reference"]["folder"])).resolve()
        for videos in sets:
            if videos.folder.resolve() == folder:
                return videos

    def rank(videos: VideoSet) -> tuple[int, int, int]:
        manifest = videos.manifest or {}
        setting = manifest.get("setting")
        steps = setting.get("steps", 0) if isinstance(setting, dict) else 0
        # A run of sample before the calibration: it has times and is meant to be looked at.
        return int(manifest.get("cache") is None), int(steps), int("cache" in manifest)

    return max(sets, key=rank)


def _shared(baseline: VideoSet, videos: VideoSet) -> list[Pair]:
    if baseline.manifest is None or videos.manifest is None:
        ours = {video.path.stem: video for video in baseline.videos}
        named = ((video.path.stem, video) for video in videos.videos)
        return [Pair(ours[stem], video) for stem, video in named if stem in ours]
    known = {(video.prompt, video.seed): video for video in baseline.videos}
    return [
        Pair(known[video.prompt, video.seed], video)
        for video in videos.videos
        if (video.prompt, video.seed) in known
    ]


def _baseline_row(videos: VideoSet) -> Row:
    figures: dict[str, Interval | None] = {"seconds": _seconds(videos)}
    return Row(videos.folder.name, describe(videos.manifest), figures, "the baseline")


def _row(found: Material, baseline: VideoSet, videos: VideoSet, pairs: list[Pair]) -> Row:
    figures: dict[str, Interval | None] = {"seconds": _seconds(videos)}
    evaluation = _evaluation_of(found, baseline, videos)
    if evaluation is not None:
        figures["speedup"] = _interval(evaluation.get("speedup"))
        figures["loss"] = _interval(evaluation["loss"]["share"])
        for name, parts in evaluation["metrics"].items():
            figures[name] = _interval(parts["difference"] or parts["candidate"])
        by = f"evaluate, {evaluation['pairs']} pairs; loss of {evaluation['loss']['measure']}"
    else:
        summary = summarise([measure_pair(pair) for pair in pairs])
        figures |= _of_summary(summary)
        by = f"this report, {len(pairs)} pairs; loss of {summary.loss.measure}"
    return Row(videos.folder.name, describe(videos.manifest), figures, by)


def _of_summary(summary: Summary) -> dict[str, Interval | None]:
    figures = {m.name: m.difference or m.candidate for m in summary.metrics}
    return {"speedup": summary.speedup, "loss": summary.loss.share, **figures}


def _evaluation_of(found: Material, baseline: VideoSet, videos: VideoSet) -> dict[str, Any] | None:
    wanted = baseline.folder.resolve(), videos.folder.resolve()
    for evaluation in reversed(found.evaluations):
        sides = (Path(str(evaluation[side]["folder"])) for side in ("reference", "candidate"))
        if tuple(side.resolve() for side in sides) == wanted:
            return dict(evaluation)
    return None


def _seconds(videos: VideoSet) -> Interval | None:
    seconds = [video.seconds for video in videos.videos if video.seconds is not None]
    return bootstrap_ci(seconds, np.median) if seconds else None


def _interval(content: Any) -> Interval | None:
    """An interval as `Interval.as_json` wrote it. Raises FileError for anything else."""
    if content is None:
        return None
    try:
        low = -math.inf if content["low"] is None else float(content["low"])
        high = math.inf if content["high"] is None else float(content["high"])
        return Interval(float(content["estimate"]), low, high, int(content["count"]))
    except (KeyError, TypeError, ValueError) as error:
        raise FileError("evaluation: an interval is damaged; run osp-opt evaluate again") from error
