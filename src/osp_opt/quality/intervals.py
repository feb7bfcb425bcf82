"""Estimates with confidence intervals, alone and in pairs. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

__all__ = ["Interval", "bootstrap_ci", "mean_ci", "paired_difference"]


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
