"""Paired differences (the single-sample intervals are tested with the trial ledger)."""

from __future__ import annotations

import numpy as np
import pytest

from osp_opt.quality.intervals import (
    bootstrap_ci,
    lost_share,
    mean_ci,
    paired_difference,
    paired_shares,
    prompts_to_show,
    unseen_share,
    wilson,
)


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


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    zeros = [0.0] * 30
    hits = 0
    for _ in range(300):
        found = paired_difference(rng.normal(1, 2, 30).tolist(), zeros)
        hits += found.low <= 1 <= found.high
    assert 0.88 < hits / 300 < 0.98


def test_same_seed_same_interval() -> None:
    values = np.random.default_rng(2).normal(size=12).tolist()
    assert bootstrap_ci(values, seed=3) == bootstrap_ci(values, seed=3)


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


def test_paired_shares_cover_the_truth_where_a_bootstrap_does_not() -> None:
    """Rare losses: 3 % of 20 pairs, so that most samples show none."""
    rng = np.random.default_rng(5)
    hits = {"newcombe": 0, "bootstrap": 0}
    for _ in range(300):
        lost = (rng.random(20) < 0.03).astype(float)
        before, after = [1.0] * 20, (1.0 - lost).tolist()
        for name, method in (("newcombe", paired_shares), ("bootstrap", paired_difference)):
            found = method(before, after)
            hits[name] += found.low <= 0.03 <= found.high
    assert hits["newcombe"] / 300 > 0.94
    assert hits["bootstrap"] / 300 < 0.6


def test_a_mean_of_outcomes_counts_as_one_trial() -> None:
    halves = paired_shares([0.5] * 12, [0.5] * 12)
    whole = paired_shares(*pairs(6, 0, 0, 6))
    assert halves.estimate == whole.estimate == 0
    assert halves.high == pytest.approx(whole.high)


def test_how_many_pairs_show_how_little() -> None:
    assert prompts_to_show(0.01) == 381  # z2 * 99 = 380.3
    assert unseen_share(381) < 0.01 < unseen_share(380)
    assert paired_shares([1.0] * 381, [1.0] * 381).high == pytest.approx(unseen_share(381))


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
