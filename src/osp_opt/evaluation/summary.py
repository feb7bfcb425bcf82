"""From pairs to a judgement: paired differences with intervals, loss, verdict.

Videos of one prompt with several seeds resemble each other, so the bootstrap resamples *prompts*,
over the mean of their seeds; with a single prompt it resamples seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from osp_opt.evaluation.measures import Measured
from osp_opt.quality.intervals import Interval, bootstrap_ci, paired_difference
from osp_opt.quality.timing import speedup
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["Loss", "Metric", "Summary", "summarise"]

Verdict = Literal["kept", "exceeded", "undecided"]
LOWER_IS_BETTER = ("flicker", "lpips")
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
        metrics.append(
            Metric(name, _bootstrap(after), _bootstrap(before), paired_difference(after, before))
        )
    seconds = [(m.pair.reference.seconds, m.pair.candidate.seconds) for m in measured]
    faster = None
    if all(a is not None and b is not None for a, b in seconds):
        faster = speedup([a or 0.0 for a, _ in seconds], [b or 0.0 for _, b in seconds])
    vbench = [n for n in alone if n not in (*ATTRIBUTES, "all", "flicker")]
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
        relative = _relative(groups, ATTRIBUTES)
        if relative is not None:
            return Loss(relative, "attributes as asked")
    if vbench:
        relative = _relative(groups, vbench)
        if relative is not None:
            return Loss(relative, "VBench mean")
    if all("ssim" in m.between for group in groups for m in group):
        return Loss(_interval(groups, lambda m: 1.0 - m.between["ssim"]), "SSIM")
    return Loss(
        _interval(groups, lambda m: max(0.0, 1.0 - m.between["psnr"] / VISIBLE_PSNR)), "PSNR"
    )


def _relative(groups: list[list[Measured]], names: Sequence[str]) -> Interval | None:
    before = [_mean(g, lambda m: float(np.mean([m.reference[n] for n in names]))) for g in groups]
    after = [_mean(g, lambda m: float(np.mean([m.candidate[n] for n in names]))) for g in groups]
    level = float(np.mean(before))
    if level <= 0:
        return None
    return paired_difference([x / level for x in before], [x / level for x in after])


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
