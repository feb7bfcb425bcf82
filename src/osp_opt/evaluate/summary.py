"""From pairs to a judgement: paired differences with intervals, loss, verdict.

Videos of one prompt with several seeds resemble each other, so what is counted and resampled are
*prompts*, each the mean of its seeds; with a single prompt, seeds.

Shares of prompts (attributes as asked) get Wilson's and Newcombe's intervals, everything else a
bootstrap. A bootstrap of values that are all alike has no width; where a loss rests on such, the
interval is widened by what so few pairs leave open, so that a handful of equal videos is never
taken for proof.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from osp_opt.evaluate.measures import Measured
from osp_opt.quality.intervals import (
    Interval,
    bootstrap_ci,
    lost_share,
    paired_difference,
    paired_shares,
    unseen_share,
    wilson,
)
from osp_opt.system.timing import speedup
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["Loss", "Metric", "Summary", "summarise"]

Verdict = Literal["kept", "exceeded", "undecided"]
LOWER_IS_BETTER = ("flicker", "lpips")
SHARES = (*ATTRIBUTES, "all")  # of prompts: 0 or 1 for each video
AS_ASKED = "attributes as asked"  # the measure of a loss that is a share of prompts
VISIBLE_PSNR = 40.0  # dB, at which differences can hardly be seen


@dataclass(frozen=True)
class Metric:
    """One measure over all pairs.

    Either of both videos (`reference`, `candidate`, and `difference`, candidate less reference, in
    pairs), or of how near they are (`candidate` alone).
    """

    name: str
    candidate: Interval
    reference: Interval | None = None
    difference: Interval | None = None

    def as_json(self) -> dict[str, Any]:
        """The intervals that there are."""
        parts = {name: getattr(self, name) for name in ("reference", "candidate", "difference")}
        return {name: None if part is None else part.as_json() for name, part in parts.items()}


@dataclass(frozen=True)
class Loss:
    """The share of quality that was lost, by `measure`; below 0 is a gain."""

    share: Interval
    measure: str

    def verdict(self, max_loss: float) -> Verdict:
        """ "kept" or "exceeded" only where the whole interval says so."""
        if not math.isfinite(self.share.low):
            return "undecided"
        if self.share.high <= max_loss:
            return "kept"
        return "exceeded" if self.share.low > max_loss else "undecided"


@dataclass(frozen=True)
class Summary:
    """All measures, the loss, and how many times faster the candidates were made (if timed)."""

    metrics: tuple[Metric, ...]
    loss: Loss
    speedup: Interval | None
    prompts: int
    pairs: int

    def metric(self, name: str) -> Metric | None:
        """The measure of that name, if it was taken."""
        return next((metric for metric in self.metrics if metric.name == name), None)


def summarise(measured: Sequence[Measured]) -> Summary:
    """Judge all pairs together. Raises ValueError for none."""
    groups = _groups(measured)
    metrics = [
        Metric(name, _interval(groups, lambda m, n=name: m.between[n]))  # type: ignore[misc]
        for name in ("psnr", "ssim", "lpips")
        if all(name in m.between for m in measured)
    ]
    alone = [n for n in measured[0].reference if all(n in m.reference for m in measured)]
    for name in alone:
        before = [_mean(group, lambda m: m.reference[name]) for group in groups]  # noqa: B023
        after = [_mean(group, lambda m: m.candidate[name]) for group in groups]  # noqa: B023
        if name in SHARES:
            parts = wilson(after), wilson(before), paired_shares(after, before)
        else:
            parts = _bootstrap(after), _bootstrap(before), paired_difference(after, before)
        metrics.append(Metric(name, *parts))
    seconds = [(m.pair.reference.seconds, m.pair.candidate.seconds) for m in measured]
    faster = None
    if all(a is not None and b is not None for a, b in seconds):
        faster = speedup([a or 0.0 for a, _ in seconds], [b or 0.0 for _, b in seconds])
    vbench = [n for n in alone if n not in (*SHARES, "flicker")]
    return Summary(
        metrics=tuple(metrics),
        loss=_loss(groups, alone, vbench),
        speedup=faster,
        prompts=len({m.pair.prompt for m in measured} - {None}),
        pairs=len(measured),
    )


def _loss(groups: list[list[Measured]], alone: Sequence[str], vbench: Sequence[str]) -> Loss:
    """Of attributes that are as asked where the checker could read them, else of VBench's mean,
    else of SSIM, else (frames too small for SSIM) of PSNR below the one at which nothing is seen.
    """
    if "all" in alone:
        before, after = _levels(groups, ATTRIBUTES)
        if any(before):
            return Loss(lost_share(before, after), AS_ASKED)
    if vbench:
        before, after = _levels(groups, vbench)
        level = float(np.mean(before))
        if level > 0:
            lost = paired_difference([x / level for x in before], [x / level for x in after])
            return Loss(_at_least_open(lost), "VBench mean")
    if all("ssim" in m.between for group in groups for m in group):
        lost = _interval(groups, lambda m: 1.0 - m.between["ssim"])
        return Loss(_at_least_open(lost), "SSIM")
    lost = _interval(groups, lambda m: max(0.0, 1.0 - m.between["psnr"] / VISIBLE_PSNR))
    return Loss(_at_least_open(lost), "PSNR")


def _levels(groups: list[list[Measured]], names: Sequence[str]) -> tuple[list[float], list[float]]:
    """Mean of the measures `names` of every group, of the reference and of the candidate."""
    before = [_mean(g, lambda m: float(np.mean([m.reference[n] for n in names]))) for g in groups]
    after = [_mean(g, lambda m: float(np.mean([m.candidate[n] for n in names]))) for g in groups]
    return before, after


def _at_least_open(interval: Interval) -> Interval:
    """Where no value differed: what prompts that were not tried may yet show."""
    if interval.low != interval.high:
        return interval
    room = unseen_share(interval.count)
    return Interval(interval.estimate, interval.low - room, interval.high + room, interval.count)


def _groups(measured: Sequence[Measured]) -> list[list[Measured]]:
    """What is resampled: the videos of each prompt together, or each video of a single prompt."""
    by_prompt: dict[str | None, list[Measured]] = {}
    for m in measured:
        by_prompt.setdefault(m.pair.prompt, []).append(m)
    if None in by_prompt or len(by_prompt) == 1:
        return [[m] for m in measured]
    return list(by_prompt.values())


def _mean(group: Sequence[Measured], value: Callable[[Measured], float]) -> float:
    return float(np.mean([value(m) for m in group]))


def _interval(groups: list[list[Measured]], value: Callable[[Measured], float]) -> Interval:
    return _bootstrap([_mean(group, value) for group in groups])


def _bootstrap(values: Sequence[float]) -> Interval:
    return bootstrap_ci(values, np.mean)
