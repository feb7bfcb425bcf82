"""Intervals cover what they say, by simulation; shares as in the papers they are from.

`pytest -s` prints how often they do.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from osp_opt.quality.intervals import (
    FEWEST,
    FEWEST_SKEWED,
    Interval,
    lost_share,
    mean_ci,
    paired_difference,
    paired_shares,
    positive_mean_ci,
    ratio_ci,
    wilson,
)

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "results.json"


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(0)
    difficulty = rng.normal(30, 8, 40)
    reference = difficulty + rng.normal(0, 0.2, 40)
    candidate = difficulty + 0.5 + rng.normal(0, 0.2, 40)
    paired = paired_difference(candidate.tolist(), reference.tolist())
    assert paired.low < 0.5 < paired.high
    assert paired.low > 0
    unpaired = mean_ci(reference.tolist())
    assert paired.high - paired.low < (unpaired.high - unpaired.low) / 10
    assert paired.estimate == pytest.approx(np.mean(candidate - reference))


COUNTS = (2, 3, 4, 8, 12, 30)
DRAWS = 2000
LEAST = 0.95 - 3 * (0.95 * 0.05 / DRAWS) ** 0.5
"""Within the Monte-Carlo error of 95 %."""


def coverage(
    what: str,
    interval: Callable[[list[float]], Interval],
    draw: Callable[[int], np.ndarray],
    truth: float,
    count: int,
) -> float:
    """How often the interval of `count` values holds the truth."""
    found = (interval(draw(count).tolist()) for _ in range(DRAWS))
    share = float(np.mean([each.low <= truth <= each.high for each in found]))
    print(f"\ncoverage: {what}, {count} values: {share:.3f}", end="")
    return share


def bootstrapped(values: list[float]) -> Interval:
    """The percentile bootstrap, which was here before."""
    draws = np.random.default_rng(0).choice(values, (400, len(values))).mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high), len(values))


@pytest.mark.parametrize("count", COUNTS[:-1])
def test_a_bootstrap_of_few_values_would_cover_less(count: int) -> None:
    rng = np.random.default_rng(count)
    found = coverage(
        "normal, by bootstrap", bootstrapped, lambda n: rng.normal(1, 2, n), 1.0, count
    )
    assert found < LEAST


@pytest.mark.parametrize("count", COUNTS)
def test_what_says_95_percent_covers_95_percent(count: int) -> None:
    rng = np.random.default_rng(count)
    assert coverage("normal", mean_ci, lambda n: rng.normal(1, 2, n), 1.0, count) > LEAST
    ratios = coverage(
        "ratios", ratio_ci, lambda n: np.exp(rng.normal(0.3, 0.5, n)), np.exp(0.3), count
    )
    assert ratios > LEAST


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("skew", [0.3, 0.8, 1.4])
def test_the_mean_of_losses_is_covered_however_skewed_they_are(count: int, skew: float) -> None:
    """Of log-normal ones; 1.4 means that one in six is four times the typical one or more."""
    rng = np.random.default_rng(count)
    truth = 0.01 * float(np.exp(skew**2 / 2))
    found = coverage(
        f"losses, skew {skew}",
        positive_mean_ci,
        lambda n: 0.01 * np.exp(rng.normal(0, skew, n)),
        truth,
        count,
    )
    assert found > LEAST


def test_losses_that_are_none_have_an_interval_of_none() -> None:
    found = positive_mean_ci([0.0, 6e-8, 0.0])
    assert (found.low, found.high) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert positive_mean_ci([0.0, 0.0, 0.02]).high <= 1.0


def own_values() -> dict[str, list[float]]:
    """Per prompt, of the benchmark's schedules and caches, centred: dB, and logarithms of speed-ups
    and of error ratios of one to the next.
    """
    results = json.loads(RESULTS.read_text())
    values: dict[str, list[float]] = {"PSNR": [], "speed-up": [], "error ratio": []}
    for section in ("steps", "cache", "combined"):
        rows = [row["values"] for row in results[section]["rows"]]
        errors = [np.log(np.maximum(row["mse"], 1e-12)) for row in rows]
        found = {
            "PSNR": [np.array(row["psnr"]) for row in rows],
            "speed-up": [np.log(row["speedup"]) for row in rows],
            "error ratio": [a - b for a, b in pairwise(errors) if len(a) == len(b)],
        }
        for name, kept in values.items():
            for data in found[name]:
                if len(data) >= 8 and data.std() > 0:
                    kept += ((data - data.mean()) / data.std(ddof=1)).tolist()
    return values


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("name", ["PSNR", "speed-up", "error ratio"])
def test_the_project_s_own_measurements_are_covered(name: str, count: int) -> None:
    """Resampled from the benchmark's."""
    values = np.array(own_values()[name])
    rng = np.random.default_rng(count)
    truth = float(values.mean())
    found = coverage(f"own {name}", mean_ci, lambda n: rng.choice(values, n), truth, count)
    assert found > LEAST


def test_few_values_are_shown_themselves() -> None:
    """Their interval would say nothing: [-36, 98] dB, of 20 and 42."""
    assert mean_ci([20.0, 42.0]).text(digits=1, unit=" dB") == "20.0, 42.0 dB (2 values)"
    assert mean_ci([20.0]).text(digits=1, unit=" dB") == "20.0 dB"
    assert mean_ci([20.0, 21.0, 22.0, 21.0]).text(digits=1) == "21.0 [19.7, 22.3]"
    assert ratio_ci([1.0, 2.0, 4.0]).text(digits=1, unit="x") == "1.0, 2.0, 4.0x (3 values)"
    assert (
        mean_ci(np.log([1.0, 2.0, 4.0]).tolist()).exp().text(digits=1) == "1.0, 2.0, 4.0 (3 values)"
    )
    losses = positive_mean_ci([0.001, 0.002, 0.01, 0.0005])
    assert losses.text(100, 2, " %") == "0.10, 0.20, 1.00, 0.05 % (4 values)"
    assert not losses.tells
    assert positive_mean_ci([0.001, 0.002, 0.01, 0.0005, 0.001, 0.003]).tells
    for values in ([20.0], [20.0, 42.0], [20.0, 21.0, 22.0], [20.0, 21.0, 22.0, 23.0]):
        assert Interval.from_json(json.loads(json.dumps(mean_ci(values).as_json()))) == mean_ci(
            values
        )


@pytest.mark.parametrize(
    ("interval", "fewest", "draw", "spread"),
    [
        (mean_ci, FEWEST, lambda normal: normal, 2 * 1.96),
        (positive_mean_ci, FEWEST_SKEWED, lambda x: 0.01 * np.exp(x), 0.01 * 2 * np.sinh(1.96)),
    ],
)
def test_an_interval_is_shown_from_where_it_is_narrower_than_the_values(
    interval: Callable[[list[float]], Interval],
    fewest: int,
    draw: Callable[[np.ndarray], np.ndarray],
    spread: float,
) -> None:
    """Than the range in which 95 % of single values lie, more often than not."""
    rng = np.random.default_rng(0)
    for count, narrower in ((fewest - 1, False), (fewest, True)):
        found = [interval(draw(rng.normal(0, 1, count)).tolist()) for _ in range(DRAWS)]
        assert (np.median([each.high - each.low for each in found]) < spread) == narrower
        assert all(each.tells == narrower for each in found)


def pairs(both: int, first: int, second: int, neither: int) -> tuple[list[float], list[float]]:
    """Outcomes of a fourfold table."""
    ones = [1.0] * (both + first) + [0.0] * (second + neither)
    twos = [1.0] * both + [0.0] * first + [1.0] * second + [0.0] * neither
    return ones, twos


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        # By hand with z^2 = 3.841459: centre (p + z2/2n) / (1 + z2/n), and so on.
        (0, 10, 0.0, 3.841459 / 13.841459),
        (10, 10, 10 / 13.841459, 1.0),
        (5, 10, 0.236593, 0.763407),  # 0.5 -+ sqrt(z2/40 + z2^2/400) / 1.3841459
        (81, 263, 0.255300, 0.366202),  # the example of Newcombe 1998, Stat. Med. 17, 857
    ],
)
def test_wilson(right: int, count: int, low: float, high: float) -> None:
    found = wilson([1.0] * right + [0.0] * (count - right))
    assert found.estimate == right / count
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)


@pytest.mark.parametrize(
    ("table", "difference", "low", "high"),
    [
        ((36, 12, 2, 0), 0.2, 0.0569, 0.3404),  # Newcombe 1998, Stat. Med. 17, 2635, table II
        ((36, 14, 0, 0), 0.28, 0.1528, 0.4167),
        ((14, 5, 0, 22), 5 / 41, 0.011, 0.226),  # Altman et al. 2000, table 6.2, page 53
        # By hand: both sides always right, Wilson's lower bound of each is n / (n + z2), phi is 0.
        ((20, 0, 0, 0), 0.0, -3.841459 / 23.841459, 3.841459 / 23.841459),
        ((0, 0, 0, 5), 0.0, -3.841459 / 8.841459, 3.841459 / 8.841459),
    ],
)
def test_paired_shares(
    table: tuple[int, int, int, int], difference: float, low: float, high: float
) -> None:
    ones, twos = pairs(*table)
    found = paired_shares(ones, twos)
    assert found.estimate == pytest.approx(difference)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-4)
    mirrored = paired_shares(twos, ones)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


def test_a_mean_of_outcomes_counts_as_one_trial() -> None:
    halves = paired_shares([0.5] * 12, [0.5] * 12)
    whole = paired_shares(*pairs(6, 0, 0, 6))
    assert halves.estimate == whole.estimate == 0
    assert halves.high == pytest.approx(whole.high)


def test_a_lost_share_is_of_what_was_there() -> None:
    before, after = pairs(6, 2, 0, 2)
    lost = lost_share(before, after)
    bare = paired_shares(before, after)
    assert lost.estimate == pytest.approx(2 / 8)  # 8 of 10 were right, 6 still are
    assert (lost.low, lost.high) == pytest.approx((bare.low / 0.8, bare.high / 0.8))
    with pytest.raises(ValueError, match="none can be lost"):
        lost_share([0.0, 0.0], [0.0, 1.0])


def test_outcomes_outside_a_share() -> None:
    with pytest.raises(ValueError, match="within 0 and 1"):
        wilson([0.5, 1.5])


def test_unequal_lengths() -> None:
    for method in (paired_difference, paired_shares):
        with pytest.raises(ValueError, match="2 and 1"):
            method([1, 0], [1])


def test_students_interval_matches_the_tables() -> None:
    """Values with deviation sqrt(n) make the half width the quantile itself."""
    for count, quantile in ((2, 12.7062), (3, 4.3027), (4, 3.1824), (6, 2.5706), (31, 2.0423)):
        values = np.linspace(-1, 1, count)
        values *= np.sqrt(count) / values.std(ddof=1)
        interval = mean_ci(list(values))
        assert interval.high == pytest.approx(quantile, rel=5e-3)
        assert interval.low == pytest.approx(-interval.high, abs=1e-12)


def test_one_value_has_no_bounds_and_none_is_an_error() -> None:
    assert mean_ci([2.0]).as_json() == {"estimate": 2.0, "low": None, "high": None, "count": 1}
    for bad in ([], [1.0, float("inf")]):
        with pytest.raises(ValueError, match="all finite"):
            mean_ci(bad)
