"""From pairs to a judgement: paired differences with intervals, loss, verdict.

Videos of one prompt with several seeds resemble each other, so what is counted are *prompts*, each
the mean of its seeds; with a single prompt, seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osp_opt.evaluate.measures import Measured
from osp_opt.quality.intervals import Interval, mean_ci, paired_difference, paired_shares, wilson
from osp_opt.quality.loss import Loss, loss_of
from osp_opt.system.timing import speedup
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["Metric", "Summary", "summarise"]

LOWER_IS_BETTER = ("flicker", "lpips")
SHARES = (*ATTRIBUTES, "all")  # of prompts: 0 or 1 for each video


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
            parts = mean_ci(after), mean_ci(before), paired_difference(after, before)
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


def _interval(groups: list[list[Measured]], value: Callable[[Measured], float]) -> Interval:
    return mean_ci([_mean(group, value) for group in groups])
