"""Which runs are compared with which, and the figures of each: speed and quality with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osp_opt.base.errors import FileError, PolicyError
from osp_opt.base.terminal import note
from osp_opt.cache.policy import CachePolicy
from osp_opt.evaluate.measures import measure_pair
from osp_opt.evaluate.pairs import Pair, pairing
from osp_opt.evaluate.summary import Summary, summarise
from osp_opt.generate.manifest import Take, open_take, original_of, read_takes
from osp_opt.quality.intervals import Interval, mean_ci
from osp_opt.quality.loss import CHANGED_PSNR
from osp_opt.quality.yardstick import Yardstick
from osp_opt.report.runs import Material

__all__ = ["Comparison", "Row", "compare_runs", "describe"]


@dataclass(frozen=True)
class Row:
    """One run in the table: how it was made, and figures by name (None: not known)."""

    name: str
    how: str
    figures: Mapping[str, Interval | None]
    measured_by: str = ""
    verdict: str | None = None
    max_loss: float | None = None
    notes: tuple[str, ...] = ()
    """What evaluate could not measure."""
    yardstick: Yardstick | None = None

    @property
    def keeps(self) -> bool:
        """Whether it is faster and not visibly another video, so far as was measured."""
        faster, near = self.figures.get("speedup"), self.figures.get("psnr")
        if faster is None or near is None or self.verdict == "lost":
            return False
        sure = faster.low if math.isfinite(faster.low) else faster.estimate
        return sure > 1.0 and near.estimate >= CHANGED_PSNR


@dataclass(frozen=True)
class Comparison:
    """The baseline, the candidates with the pairs that they share with it, and the table."""

    baseline: Take
    candidates: tuple[tuple[Take, tuple[Pair, ...]], ...]
    rows: tuple[Row, ...]

    @property
    def winner(self) -> Row | None:
        """The fastest row that keeps the baseline's videos."""
        kept = [row for row in self.rows if row.keeps]
        return max(kept, key=lambda row: row.figures["speedup"].estimate, default=None)  # type: ignore[union-attr]


def compare_runs(found: Material, reference: Path | None) -> Comparison | None:
    """Choose the baseline and compare every other run of the same prompts and seeds with it.

    Figures come from the evaluation of the two folders where there is one, else they are measured
    from the videos now. None when no run has videos. Raises what opening and reading raise.
    """
    sets = _all_sets(found)
    if reference is not None:
        baseline = open_take(reference, "--reference")
    elif sets:
        baseline = _baseline(found, sets)
    else:
        return None
    rows = [_baseline_row(baseline)]
    candidates = []
    for videos in sets:
        if videos.is_same(baseline):
            continue
        pairs = _shared(baseline, videos)
        if not pairs:
            continue
        candidates.append((videos, tuple(pairs)))
        rows.append(_row(found, baseline, videos, pairs))
    return Comparison(baseline, tuple(candidates), tuple(rows))


def describe(take: Take) -> str:
    """How the videos of a take were made, in a few words."""
    if not take.timesteps:
        return ""
    words = f"{len(take.timesteps)} {take.steps_word} steps"
    cache = (take.settings or {}).get("cache")
    if cache is None:
        return f"{words}, no cache"
    try:
        return f"{words}, cache: {CachePolicy.from_json(cache)}"
    except PolicyError:
        return f"{words}, a cache"


def _all_sets(found: Material) -> list[Take]:
    """The runs' videos, and those that evaluations name and that are still there.

    Only inside the places that were named: an evaluation may come from somebody else, and must not
    make us show what it points at.
    """
    sets = list(found.videos)
    places = [place.resolve() for place in found.places]
    for evaluation in found.evaluations:
        for side in ("reference", "candidate"):
            folder = Path(str(evaluation[side]["folder"]))
            if not any(folder.resolve().is_relative_to(place) for place in places):
                note(f"the videos in {folder} are not shown; name that folder, too, to show them")
            elif folder.is_dir():
                takes = read_takes(folder)
                sets += [t for t in takes if not any(t.is_same(known) for known in sets)]
    return sets


def _baseline(found: Material, sets: list[Take]) -> Take:
    for evaluation in found.evaluations:
        for videos in sets:
            if _is_side(evaluation["reference"], videos):
                return videos
    return original_of(sets)


def _is_side(side: Mapping[str, Any], videos: Take) -> bool:
    """Whether a side of an evaluation is this take."""
    folder = Path(str(side["folder"])).resolve()
    return folder == videos.folder.resolve() and side.get("take", "") == videos.label


def _shared(baseline: Take, videos: Take) -> list[Pair]:
    key = pairing(baseline, videos)
    known = {key(video): video for video in baseline.videos}
    return [Pair(known[key(video)], video) for video in videos.videos if key(video) in known]


def _baseline_row(videos: Take) -> Row:
    figures: dict[str, Interval | None] = {"seconds": _seconds(videos)}
    return Row(videos.name, describe(videos), figures, "the baseline")


def _row(found: Material, baseline: Take, videos: Take, pairs: list[Pair]) -> Row:
    figures: dict[str, Interval | None] = {"seconds": _seconds(videos)}
    judged: dict[str, Any] = {}
    evaluation = _evaluation_of(found, baseline, videos)
    if evaluation is not None:
        figures["speedup"] = _interval(evaluation.get("speedup"))
        figures["loss"] = _interval(evaluation["loss"]["share"])
        for name, parts in evaluation["metrics"].items():
            figures[name] = _interval(parts["difference"] or parts["candidate"])
        by = f"evaluate, {evaluation['pairs']} pairs; loss of {evaluation['loss']['measure']}"
        judged = {"verdict": evaluation.get("verdict"), "max_loss": evaluation.get("max_loss")}
        judged["notes"] = tuple(map(str, evaluation["not_measured"]))
        if evaluation.get("yardstick"):
            judged["yardstick"] = Yardstick.from_json(evaluation["yardstick"])
    else:
        summary = summarise([measure_pair(pair) for pair in pairs])
        figures |= _of_summary(summary)
        judged["notes"] = () if summary.speed_note is None else (summary.speed_note,)
        by = f"this report, {len(pairs)} pairs; loss of {summary.loss.measure}"
    return Row(videos.name, describe(videos), figures, by, **judged)


def _of_summary(summary: Summary) -> dict[str, Interval | None]:
    figures = {m.name: m.difference or m.candidate for m in summary.metrics}
    return {"speedup": summary.speedup, "loss": summary.loss.share, **figures}


def _evaluation_of(found: Material, baseline: Take, videos: Take) -> dict[str, Any] | None:
    for evaluation in reversed(found.evaluations):
        if _is_side(evaluation["reference"], baseline) and _is_side(
            evaluation["candidate"], videos
        ):
            return dict(evaluation)
    return None


def _seconds(videos: Take) -> Interval | None:
    seconds = [video.seconds for video in videos.videos if video.seconds is not None]
    return mean_ci(seconds) if seconds else None


def _interval(content: Any) -> Interval | None:
    """An interval as `Interval.as_json` wrote it. Raises FileError for anything else."""
    if content is None:
        return None
    try:
        return Interval.from_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise FileError("evaluation: an interval is damaged; run osp-opt evaluate again") from error
