"""The ledger of finished measurements, and confidence intervals over them. No torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from osp_opt.errors import FileError

__all__ = ["Interval", "TrialLedger", "bootstrap_ci", "mean_ci", "search_rng"]

_MAX_BYTES = 1 << 28
_MODE = 0o640


def search_rng(seed: int, *purpose: int | str) -> np.random.Generator:
    """The generator for one purpose of a search: every random choice of the searches is drawn
    from one of these, so it depends on the seed and the purpose, not on what ran before.
    """
    words = [seed & 0xFFFFFFFF]
    for part in purpose:
        words += [part & 0xFFFFFFFF] if isinstance(part, int) else list(part.encode())
    return np.random.default_rng(np.random.SeedSequence(words))


class TrialLedger:
    """An append-only file of finished measurements, one JSON object a line: the resume ledger.

    Each line is written and synced before `add` returns. A process killed while writing leaves a
    torn last line, which is dropped when the ledger is opened again; any other bad line is an
    error. Of several lines with one key the last counts. Only one process may write.

    Args:
        path: the file; made with its folder at the first `add`.

    Raises FileError when the file cannot be read, or is damaged in the middle.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._trials: dict[str, dict[str, Any]] = {}
        self._whole = self._read()

    def __len__(self) -> int:
        return len(self._trials)

    def keys(self) -> list[str]:
        """The keys of all finished measurements, oldest first."""
        return list(self._trials)

    def get(self, key: str) -> dict[str, Any] | None:
        """The values recorded under `key`, or None."""
        return self._trials.get(key)

    def add(self, key: str, values: dict[str, Any]) -> None:
        """Record `values` (JSON, finite numbers) under `key`, durably."""
        line = json.dumps({"key": key, "values": values}, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, _MODE)
            with os.fdopen(descriptor, "wb") as stream:  # of a descriptor: nothing is truncated
                stream.seek(self._whole)
                stream.truncate()  # what a killed process left half-written
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._whole += len(line.encode())
        self._trials[key] = values

    def _read(self) -> int:
        """Load the whole lines; the offset behind the last of them."""
        if not self.path.exists():
            return 0
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise FileError(f"{self.path}: cannot be read ({error.strerror})") from error
        if len(data) > _MAX_BYTES:
            raise FileError(f"{self.path}: {len(data):,} bytes, more than any ledger of trials")
        *lines, _torn = data.split(b"\n")
        whole = 0
        for number, line in enumerate(lines, start=1):
            try:
                trial = json.loads(line)
                self._trials[trial["key"]] = dict(trial["values"])
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                if number == len(lines) and not _torn:
                    break  # a torn line that happened to end in a newline
                raise FileError(
                    f"{self.path}: line {number} is not a trial; delete that line to go on"
                ) from error
            whole += len(line) + 1
        return whole


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
    picks = search_rng(seed, "bootstrap").integers(len(data), size=(draws, len(data)))
    replicas = np.asarray(statistic(data[picks], axis=1), dtype=np.float64)
    low, high = np.quantile(replicas, [0.5 - 0.5 * level, 0.5 + 0.5 * level])
    return Interval(estimate, float(low), float(high), len(data))


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
    return z + sum(term / freedom**power for power, term in enumerate(terms, start=1))
