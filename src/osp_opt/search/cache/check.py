"""Did the score rank what was measured? Said beside the trivial predictor, skipped blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import spearmanr

from osp_opt.quality.metrics import log_error
from osp_opt.search.cache.candidates import Candidate

__all__ = ["PredictorCheck", "check_predictor", "spearman"]


@dataclass(frozen=True)
class PredictorCheck:
    """Spearman's rank correlations with measured errors (log, mean over prompts) within about
    equal cost: of the score, and of the number of skipped blocks; NaN: unknown.
    """

    finalists: int
    prompts: int
    score: float
    skipped: float

    def line(self) -> str:
        """For the terminal."""
        if math.isnan(self.score):
            return "too few different errors were measured to judge the score"
        skipped = "-" if math.isnan(self.skipped) else f"{self.skipped:.2f}"
        return (
            f"rank correlation with the measured error, {self.finalists} candidates of about equal "
            f"cost on {self.prompts} prompts: score {self.score:.2f}, skipped blocks {skipped}"
        )

    def as_json(self) -> dict[str, Any]:
        """The fields; what is unknown is None."""
        values = asdict(self)
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in values.items()
        }


def check_predictor(
    candidates: Sequence[Candidate], errors: Mapping[int, Mapping[int, float]], num_steps: int
) -> PredictorCheck:
    """Compare the scores of raced candidates with their measured errors[candidate][prompt]."""
    raced = sorted(errors)
    common = set.intersection(*(set(errors[c]) for c in raced))
    own = [candidates[c] for c in raced]
    means = [float(log_error([errors[c][p] for p in common]).mean()) for c in raced]
    return PredictorCheck(
        finalists=len(own),
        prompts=len(common),
        score=spearman([c.score for c in own], means),
        skipped=spearman([float(c.policy.reused_blocks(num_steps)) for c in own], means),
    )


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN when either never varies."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return float(spearmanr(x, y).statistic)
