"""One rule of loss: what it says, and how often it is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from osp_opt.quality.intervals import Interval
from osp_opt.quality.loss import Loss, loss_of


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.005, "kept"),
        (0.0, 0.01, "kept"),
        (0.005, 0.02, "undecided"),
        (0.011, 0.02, "lost"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low: float, high: float, verdict: str) -> None:
    assert Loss("SSIM", Interval(0.0, low, high, 9)).verdict(0.01) == verdict
    assert Loss("SSIM", Interval(0.0, low, high, 2)).verdict(0.01) == "undecided"


@pytest.mark.parametrize("count", [3, 4, 8, 12, 30])
@pytest.mark.parametrize("skew", [0.4, 1.0])
def test_a_loss_at_the_limit_is_seldom_called_kept(count: int, skew: float) -> None:
    """The null: the mean loss is the limit itself. Either verdict is wrong."""
    rng = np.random.default_rng(count)
    limit = 0.01
    draws = limit * np.exp(rng.normal(-(skew**2) / 2, skew, (2000, count)))
    verdicts = [loss_of([], (1.0 - row).tolist()).verdict(limit) for row in draws]
    wrong = [f"{word} {verdicts.count(word) / 2000:.3f}" for word in ("kept", "lost")]
    print(f"\nloss at the limit, skew {skew}, {count} videos: wrong {', '.join(wrong)}", end="")
    assert verdicts.count("kept") / 2000 < 0.05 + 3 * (0.05 * 0.95 / 2000) ** 0.5
    assert verdicts.count("lost") / 2000 < 0.025 + 3 * (0.05 * 0.95 / 2000) ** 0.5


def test_a_loss_well_below_the_limit_is_shown_to_be_kept() -> None:
    rng = np.random.default_rng(0)
    draws = 0.002 * np.exp(rng.normal(0, 0.6, (200, 8)))
    verdicts = [loss_of([], (1.0 - row).tolist()).verdict(0.01) for row in draws]
    assert verdicts.count("kept") > 180


def test_attributes_are_counted_and_do_not_decide() -> None:
    alike = loss_of([50.0] * 6, [0.999] * 6, right=(16, 15), asked=16)
    assert alike.verdict(0.01) == "kept"
    assert "15 of 16, 16 by the original" in alike.line()
    assert json.loads(json.dumps(alike.as_json()))["right"] == [16, 15]
