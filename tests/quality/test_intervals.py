"""Paired differences (the single-sample intervals are tested with the trial ledger)."""

from __future__ import annotations

import numpy as np
import pytest

from osp_opt.quality.intervals import bootstrap_ci, mean_ci, paired_difference


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


def test_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([1, 2], [1])
