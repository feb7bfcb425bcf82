"""Estimates with confidence intervals that cover what they say, also for few values. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtrit

__all__ = [
    "FEWEST",
    "FEWEST_SKEWED",
    "Interval",
    "lost_share",
    "mean_ci",
    "paired_difference",
    "paired_shares",
    "positive_mean_ci",
    "ratio_ci",
    "wilson",
]

LEVEL = 0.95
"""The share of intervals that cover what they are of."""

ROUNDING = 1e-6  # a share that is smaller than that is none
SMALL = 0.01  # of the largest value: a smaller one counts as that in a logarithm
FEWEST = 4
"""Values from which on the interval of their mean says more than they do: that of three is wider
than the range in which 95 % of single values lie. How far the values happen to lie apart must not
decide it: of the intervals that are left then, fewer would cover what they say."""
FEWEST_SKEWED = 6
"""The same for shares of which a few are much larger than the rest (`positive_mean_ci`), with
logarithms that deviate by 1, as the benchmark's errors do."""


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval over `count` values.

    Where the values are too few for the interval to say more than they do, they are kept, and
    shown in its place (`tells`). Decisions go by the interval: it covers what it says there, too.
    """

    estimate: float
    low: float
    high: float
    count: int
    values: tuple[float, ...] = ()

    def __str__(self) -> str:
        return self.text()

    @property
    def tells(self) -> bool:
        """Whether the interval is what to show, rather than the values or the estimate."""
        return math.isfinite(self.low) and not self.values

    def exp(self) -> Interval:
        """Of a mean of logarithms: of the (geometric) mean itself."""

        def power(x: float) -> float:
            return math.exp(min(x, 700.0)) if math.isfinite(x) else x

        values = tuple(map(power, self.values))
        return Interval(power(self.estimate), power(self.low), power(self.high), self.count, values)

    def text(
        self,
        factor: float = 1.0,
        digits: int | None = None,
        unit: str = "",
        *,
        counted: bool = True,
    ) -> str:
        """``48.5 [46.0, 51.0] dB``; of few values ``48.1, 48.9 dB (2 values)``; of one the value.

        Numbers are multiplied by `factor` and shown with `digits` after the point, or with four
        that count. `counted` says how many values they are, where values are shown.
        """

        def shown(x: float) -> str:
            return f"{factor * x:.4g}" if digits is None else f"{factor * x:.{digits}f}"

        if self.tells:
            return f"{shown(self.estimate)} [{shown(self.low)}, {shown(self.high)}]{unit}"
        if self.values:
            number = f" ({self.count} values)" if counted else ""
            return ", ".join(map(shown, self.values)) + unit + number
        return shown(self.estimate) + unit

    def as_json(self) -> dict[str, Any]:
        """The fields; an unknown bound is None, values are there where they are kept."""
        low, high = (x if math.isfinite(x) else None for x in (self.low, self.high))
        fields = {"estimate": self.estimate, "low": low, "high": high, "count": self.count}
        return {**fields, "values": list(self.values)} if self.values else fields

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Interval:
        """The inverse of `as_json`: an unknown bound is infinite.

        Raises KeyError, TypeError or ValueError for anything else.
        """
        low = -math.inf if values["low"] is None else float(values["low"])
        high = math.inf if values["high"] is None else float(values["high"])
        kept = tuple(float(value) for value in values.get("values", ()))
        return cls(float(values["estimate"]), low, high, int(values["count"]), kept)


def mean_ci(values: Sequence[float]) -> Interval:
    """The mean with Student's interval, which covers 95 % at any number of normal values.

    One value alone says nothing of its spread: its interval is unbounded. For paired comparisons
    pass the differences. Raises ValueError for no values or values that are not finite.
    """
    data = _checked(values)
    mean, n = float(data.mean()), len(data)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = _student(LEVEL, n - 1) * float(data.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n, _few(data))


def ratio_ci(ratios: Sequence[float]) -> Interval:
    """The geometric mean of ratios (above 0) with Student's interval of their logarithms.

    A ratio and its inverse are told alike. Raises ValueError as `mean_ci`, and for others.
    """
    data = _checked(ratios)
    if data.min() <= 0.0:
        raise ValueError("a ratio is above 0")
    return mean_ci(np.log(data).tolist()).exp()


def positive_mean_ci(values: Sequence[float]) -> Interval:
    """The mean of shares (>= 0) of which a few are much larger than the rest, such as losses.

    Student's interval alone is too short above for such (it missed the mean of log-normal values
    up to 29 times in a hundred); so it is joined with Cox's of a log-normal mean (Zhou and Gao
    1997, Statistics in Medicine 16, 783), with Student's quantile of half the error. Raises
    ValueError as `mean_ci`, and for values below 0.
    """
    data = _checked(values)
    if data.min() < 0.0:
        raise ValueError("a loss is not below 0")
    student = mean_ci(values)
    n = len(data)
    if n == 1 or data.max() < ROUNDING:
        return student
    logs = np.log(np.maximum(data, SMALL * data.max()))
    spread = float(logs.var(ddof=1))
    middle = float(logs.mean()) + spread / 2
    wide = _student(0.5 + 0.5 * LEVEL, n - 1)
    half = wide * math.sqrt(spread / n + spread**2 / (2 * (n - 1)))
    low = max(0.0, min(student.low, math.exp(max(middle - half, -700.0))))
    high = max(student.high, min(math.exp(min(middle + half, 700.0)), 1.0))
    return Interval(student.estimate, low, high, n, _few(data, FEWEST_SKEWED))


def paired_difference(candidate: Sequence[float], reference: Sequence[float]) -> Interval:
    """The mean of ``candidate[i] - reference[i]`` with Student's interval.

    Pairs share prompt and seed, so what makes one video harder than another cancels and the
    interval is much narrower than one of the difference of two means. Raises ValueError when the
    lengths differ, and as `mean_ci`.
    """
    first, second = _checked(candidate), _checked(reference)
    if len(first) != len(second):
        raise ValueError(f"pairs need equal numbers of values, got {len(first)} and {len(second)}")
    return mean_ci((first - second).tolist())


def wilson(values: Sequence[float]) -> Interval:
    """A proportion with Wilson's interval (1927), which stays honest at 0 and at 1.

    `values` are outcomes within [0, 1], each one trial; means of several outcomes count as one
    trial too, which errs on the wide side. Raises ValueError for other values.
    """
    data = _shares(values)
    share, n = float(data.mean()), len(data)
    z2 = float(ndtri(0.5 + 0.5 * LEVEL)) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), n)


def paired_shares(candidate: Sequence[float], reference: Sequence[float]) -> Interval:
    """The difference of two paired proportions, candidate less reference, with an honest interval.

    Newcombe 1998 (Statistics in Medicine 17, 2635), method 10: Wilson's intervals of both
    proportions, put together with the correlation phi of the pairs. Where all pairs agree it says
    what so few pairs leave open.
    Outcomes within [0, 1] as in `wilson`; of those in between, the smaller of a pair counts as
    common to both. Raises ValueError as `wilson`, and when the lengths differ.
    """
    first, second = _shares(candidate), _shares(reference)
    if len(first) != len(second):
        raise ValueError(f"pairs need equal numbers of values, got {len(first)} and {len(second)}")
    one, two = wilson(candidate), wilson(reference)
    phi = _phi(first, second)
    below = _joined(one.estimate - one.low, two.high - two.estimate, phi)
    above = _joined(one.high - one.estimate, two.estimate - two.low, phi)
    difference = one.estimate - two.estimate
    return Interval(difference, difference - below, difference + above, len(first))


def lost_share(before: Sequence[float], after: Sequence[float]) -> Interval:
    """How much of the share `before` is lost in `after`, as a share of it (`paired_shares`).

    Raises ValueError as `paired_shares`, and when nothing was right before: nothing can be lost.
    """
    whole = float(_shares(before).mean())
    if whole <= 0.0:
        raise ValueError("no outcome is right, so none can be lost")
    lost = paired_shares(before, after)
    return Interval(lost.estimate / whole, lost.low / whole, lost.high / whole, lost.count)


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


def _student(level: float, freedom: int) -> float:
    return float(stdtrit(freedom, 0.5 + 0.5 * level))


def _few(data: np.ndarray, fewest: int = FEWEST) -> tuple[float, ...]:
    return tuple(data.tolist()) if 1 < len(data) < fewest else ()


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
