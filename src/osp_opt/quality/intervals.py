"""Estimates with confidence intervals, alone and in pairs. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

__all__ = [
    "Interval",
    "bootstrap_ci",
    "lost_share",
    "mean_ci",
    "paired_difference",
    "paired_shares",
    "prompts_to_show",
    "unseen_share",
    "wilson",
]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval over `count` values."""

    estimate: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.estimate:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def as_json(self) -> dict[str, float | int | None]:
        """The fields; an unknown bound is None."""
        low, high = (x if math.isfinite(x) else None for x in (self.low, self.high))
        return {"estimate": self.estimate, "low": low, "high": high, "count": self.count}


def mean_ci(values: Sequence[float], level: float = 0.95) -> Interval:
    """The mean with Student's interval, which stays honest for few values.

    One value alone says nothing of its spread: its interval is unbounded. For paired comparisons
    pass the differences. Raises ValueError for no values or values that are not finite.
    """
    data = _checked(values)
    mean, n = float(data.mean()), len(data)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = _student_quantile(0.5 + 0.5 * level, n - 1) * float(data.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def bootstrap_ci(
    values: Sequence[float],
    statistic: Callable[..., Any] = np.median,
    *,
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron 1979) of `statistic(values, axis=)`; as `mean_ci` otherwise."""
    data = _checked(values)
    estimate = float(statistic(data, axis=0))
    if len(data) == 1:
        return Interval(estimate, -math.inf, math.inf, 1)
    picks = np.random.default_rng(seed).integers(len(data), size=(draws, len(data)))
    replicas = np.asarray(statistic(data[picks], axis=1), dtype=np.float64)
    low, high = np.quantile(replicas, [0.5 - 0.5 * level, 0.5 + 0.5 * level])
    return Interval(estimate, float(low), float(high), len(data))


def paired_difference(
    candidate: Sequence[float], reference: Sequence[float], *, level: float = 0.95, seed: int = 0
) -> Interval:
    """The mean of ``candidate[i] - reference[i]`` with its bootstrap interval.

    Pairs share prompt and seed, so what makes one video harder than another cancels and the
    interval is much narrower than one of the difference of two means. Raises ValueError when the
    lengths differ, and as `mean_ci`.
    """
    first, second = _checked(candidate), _checked(reference)
    if len(first) != len(second):
        raise ValueError(f"pairs need equal numbers of values, got {len(first)} and {len(second)}")
    return bootstrap_ci((first - second).tolist(), np.mean, level=level, seed=seed)


def wilson(values: Sequence[float], level: float = 0.95) -> Interval:
    """A proportion with Wilson's interval (1927), which stays honest at 0 and at 1.

    `values` are outcomes within [0, 1], each one trial; means of several outcomes count as one
    trial too, which errs on the wide side. Raises ValueError for other values.
    """
    data = _shares(values)
    share, n = float(data.mean()), len(data)
    z2 = _normal_quantile(level) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n)


def paired_shares(
    candidate: Sequence[float], reference: Sequence[float], level: float = 0.95
) -> Interval:
    """The difference of two paired proportions, candidate less reference, with an honest interval.

    Newcombe 1998 (Statistics in Medicine 17, 2635), method 10: Wilson's intervals of both
    proportions, put together with the correlation phi of the pairs. Where all pairs agree a
    bootstrap gives no width at all; this one says what so few pairs leave open (`unseen_share`).
    Outcomes within [0, 1] as in `wilson`; of those in between, the smaller of a pair counts as
    common to both. Raises ValueError as `wilson`, and when the lengths differ.
    """
    first, second = _shares(candidate), _shares(reference)
    if len(first) != len(second):
        raise ValueError(f"pairs need equal numbers of values, got {len(first)} and {len(second)}")
    one, two = wilson(candidate, level), wilson(reference, level)
    phi = _phi(first, second)
    below = _joined(one.estimate - one.low, two.high - two.estimate, phi)
    above = _joined(one.high - one.estimate, two.estimate - two.low, phi)
    difference = one.estimate - two.estimate
    return Interval(difference, difference - below, difference + above, len(first))


def lost_share(before: Sequence[float], after: Sequence[float], level: float = 0.95) -> Interval:
    """How much of the share `before` is lost in `after`, as a share of it (`paired_shares`).

    Raises ValueError as `paired_shares`, and when nothing was right before: nothing can be lost.
    """
    whole = float(_shares(before).mean())
    if whole <= 0.0:
        raise ValueError("no outcome is right, so none can be lost")
    lost = paired_shares(before, after, level)
    return Interval(lost.estimate / whole, lost.low / whole, lost.high / whole, lost.count)


def unseen_share(count: int, level: float = 0.95) -> float:
    """The largest share of differing pairs that `count` pairs without any leave open (Wilson)."""
    z2 = _normal_quantile(level) ** 2
    return z2 / (count + z2)


def prompts_to_show(share: float, level: float = 0.95) -> int:
    """The least number of pairs, all alike, that shows less than `share` of them to differ."""
    z2 = _normal_quantile(level) ** 2
    return math.ceil(z2 * (1.0 / share - 1.0) - 1e-9)


def _phi(first: np.ndarray, second: np.ndarray) -> float:
    """Newcombe's correlation of pairs, with his correction towards 0 where it is positive."""
    both = float(np.minimum(first, second).sum())
    only_first = float(np.maximum(first - second, 0.0).sum())
    only_second = float(np.maximum(second - first, 0.0).sum())
    neither = len(first) - both - only_first - only_second
    margins = (
        (both + only_first)
        * (only_second + neither)
        * (both + only_second)
        * (only_first + neither)
    )
    if margins <= 1e-12:  # a side that is always or never right says nothing of the correlation
        return 0.0
    covariance = both * neither - only_first * only_second
    if covariance > 0:
        covariance = max(covariance - len(first) / 2, 0.0)
    return covariance / math.sqrt(margins)


def _joined(one: float, two: float, phi: float) -> float:
    return math.sqrt(max(one * one - 2.0 * phi * one * two + two * two, 0.0))


def _normal_quantile(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + 0.5 * level)


def _shares(values: Sequence[float]) -> np.ndarray:
    data = _checked(values)
    if data.min() < 0.0 or data.max() > 1.0:
        raise ValueError("a proportion is made of outcomes within 0 and 1")
    return data


def _checked(values: Sequence[float]) -> np.ndarray:
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or not len(data) or not np.all(np.isfinite(data)):
        raise ValueError("an interval needs a list of at least one number, all finite")
    return data


def _student_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else Cornish and Fisher's
    expansion around the normal (Abramowitz and Stegun 26.7.5; error below 0.5 % at 0.975).
    """
    if freedom == 1:
        return math.tan(math.pi * (probability - 0.5))
    if freedom == 2:
        a = 4.0 * probability * (1.0 - probability)
        return 2.0 * (probability - 0.5) * math.sqrt(2.0 / a)
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4.0,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96.0,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384.0,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160.0,
    )
    return float(z + sum(term / freedom**power for power, term in enumerate(terms, start=1)))
