"""From pairs to a judgement: paired differences with intervals, loss, verdict.

Videos of one prompt with several seeds resemble each other, so what is counted are *prompts*, each
the mean of its seeds; with a single prompt, seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osp_opt.evaluate.measures import Measured
from osp_opt.generate.provenance import timing_differences
from osp_opt.quality.intervals import (
    Interval,
    mean_ci,
    paired_difference,
    paired_shares,
    ratio_ci,
    wilson,
)
from osp_opt.quality.loss import Loss, loss_of
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["Metric", "Summary", "summarise"]

LOWER_IS_BETTER = ("flicker", "lpips")
SHARES = (*ATTRIBUTES, "all")  # of prompts: 0 or 1 for each video


@dataclass(frozen=True)
class Metric:
    """One measure over all pairs.

    Either of both videos (`reference`, `candidate`, and `difference`, candidate less reference, in
    pairs), or of how near they are (`candidate` alone). A mean hides the video that tipped over:
    `worst` is the value (of `difference` where there is one) of the prompt that lost most, and
    `worse` says on how many prompts the candidate is worse, where a reference is measured, too.
    """

    name: str
    candidate: Interval
    reference: Interval | None = None
    difference: Interval | None = None
    worst: float = math.nan
    worst_prompt: str | None = None
    worse: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The intervals that there are, and the worst."""
        parts = {name: getattr(self, name) for name in ("reference", "candidate", "difference")}
        return {
            **{name: None if part is None else part.as_json() for name, part in parts.items()},
            "worst": self.worst,
            "worst_prompt": self.worst_prompt,
            "worse": self.worse,
        }


@dataclass(frozen=True)
class Summary:
    """All measures, the loss, and how many times faster the candidates were made: None if they were
    not timed, or not under the same conditions, of which `speed_note` tells.
    """

    metrics: tuple[Metric, ...]
    loss: Loss
    speedup: Interval | None
    prompts: int
    pairs: int
    speed_note: str | None = None

    def metric(self, name: str) -> Metric | None:
        """The measure of that name, if it was taken."""
        return next((metric for metric in self.metrics if metric.name == name), None)


def summarise(measured: Sequence[Measured]) -> Summary:
    """Judge all pairs together. Raises ValueError for none."""
    groups = _groups(measured)
    prompts = [group[0].pair.prompt for group in groups]
    metrics = []
    for name in ("psnr", "ssim", "lpips", "jod"):
        if all(name in m.between for m in measured):
            values = [_mean(group, lambda m: m.between[name]) for group in groups]  # noqa: B023
            metrics.append(Metric(name, mean_ci(values), **_worst(name, values, prompts)))
    alone = [n for n in measured[0].reference if all(n in m.reference for m in measured)]
    for name in alone:
        before = [_mean(group, lambda m: m.reference[name]) for group in groups]  # noqa: B023
        after = [_mean(group, lambda m: m.candidate[name]) for group in groups]  # noqa: B023
        if name in SHARES:
            parts = wilson(after), wilson(before), paired_shares(after, before)
        else:
            parts = mean_ci(after), mean_ci(before), paired_difference(after, before)
        changes = [b - a for a, b in zip(before, after, strict=True)]
        worse = sum(_sign(name) * change < 0 for change in changes)
        metrics.append(Metric(name, *parts, **_worst(name, changes, prompts), worse=worse))
    faster, speed_note = _speed(measured)
    vbench = [n for n in alone if n not in (*SHARES, "flicker", "amount_of_motion")]
    return Summary(
        metrics=tuple(metrics),
        loss=_loss(groups, alone, vbench),
        speedup=faster,
        speed_note=speed_note,
        prompts=len({m.pair.prompt for m in measured} - {None}),
        pairs=len(measured),
    )


def _speed(measured: Sequence[Measured]) -> tuple[Interval | None, str | None]:
    pairs = [(m.pair.reference, m.pair.candidate) for m in measured]
    times = [(one.seconds, other.seconds) for one, other in pairs]
    ratios = [slow / fast for slow, fast in times if slow and fast]
    if len(ratios) < len(pairs):
        return None, None
    told = (timing_differences(one.timed_on, other.timed_on) for one, other in pairs)
    if difference := next(filter(None, told), None):
        return None, f"speed: {difference}; sample both alike to compare it"
    return ratio_ci(ratios), None


def _loss(groups: list[list[Measured]], alone: Sequence[str], vbench: Sequence[str]) -> Loss:
    everything = [m for group in groups for m in group]
    ssim = None
    if all("ssim" in m.between for m in everything):
        ssim = [_mean(group, lambda m: m.between["ssim"]) for group in groups]
    right, asked = None, 0
    if "all" in alone:
        asked = len(ATTRIBUTES) * len(everything)
        before, after = (
            round(sum(getattr(m, side)[name] for m in everything for name in ATTRIBUTES))
            for side in ("reference", "candidate")
        )
        right = before, after
    scores = _levels(groups, vbench) if vbench else None
    psnr = [_mean(group, lambda m: m.between["psnr"]) for group in groups]
    return loss_of(psnr, ssim, right, asked, scores)


def _levels(groups: list[list[Measured]], names: Sequence[str]) -> tuple[list[float], list[float]]:
    """Mean of the measures `names` of every group, of the reference and of the candidate."""
    before = [_mean(g, lambda m: float(np.mean([m.reference[n] for n in names]))) for g in groups]
    after = [_mean(g, lambda m: float(np.mean([m.candidate[n] for n in names]))) for g in groups]
    return before, after


def _groups(measured: Sequence[Measured]) -> list[list[Measured]]:
    """What is counted: the videos of each prompt together, or each video of a single prompt."""
    by_prompt: dict[str | None, list[Measured]] = {}
    for m in measured:
        by_prompt.setdefault(m.pair.prompt, []).append(m)
    if None in by_prompt or len(by_prompt) == 1:
        return [[m] for m in measured]
    return list(by_prompt.values())


def _mean(group: Sequence[Measured], value: Callable[[Measured], float]) -> float:
    return float(np.mean([value(m) for m in group]))


def _sign(name: str) -> int:
    return -1 if name in LOWER_IS_BETTER else 1


def _worst(name: str, values: Sequence[float], prompts: Sequence[str | None]) -> dict[str, Any]:
    index = int(np.argmin([_sign(name) * value for value in values]))
    return {"worst": values[index], "worst_prompt": prompts[index]}
