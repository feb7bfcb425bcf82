"""Did the score rank what was measured? Said beside the trivial predictor, skipped blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from osp_opt.search.cache.candidates import Candidate

__all__ = ["PredictorCheck", "check_predictor", "spearman"]


@dataclass(frozen=True)
class PredictorCheck:
    """Spearman's rank correlations with measured errors (log, mean over prompts); NaN: unknown.

    all_*: over `policies` policies of all costs, on one prompt. equal_*: over `finalists` policies
    of about equal cost, on `prompts` prompts.
    """

    policies: int
    all_score: float
    all_skipped: float
    finalists: int
    prompts: int
    equal_score: float
    equal_skipped: float

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = []
        if math.isfinite(self.all_score):
            lines.append(
                f"rank correlation with the measured error, {self.policies} policies of all costs "
                f"on one prompt: score {self.all_score:.2f}, "
                f"number of skipped blocks {self.all_skipped:.2f}"
            )
            if self.all_score <= self.all_skipped:
                lines.append("the score did not beat the number of skipped blocks here")
        if math.isfinite(self.equal_score):
            skipped = "-" if math.isnan(self.equal_skipped) else f"{self.equal_skipped:.2f}"
            lines.append(
                f"rank correlation within equal cost, {self.finalists} finalists on "
                f"{self.prompts} prompts: score {self.equal_score:.2f}, "
                f"number of skipped blocks {skipped}"
            )
        return lines or ["too few different errors were measured to judge the score"]

    def as_json(self) -> dict[str, Any]:
        """The fields; what is unknown is None."""
        values = asdict(self)
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in values.items()
        }


def check_predictor(
    finalists: Sequence[Candidate],
    errors: Mapping[int, Mapping[int, float]],
    spread: Sequence[Candidate],
    spread_errors: Sequence[float],
    num_steps: int,
) -> PredictorCheck:
    """Compare scores with measurements.

    Args:
        finalists: candidates of about equal cost.
        errors: [finalist][prompt], of those that were raced; all of them on prompt 0.
        spread: policies of other costs, which nobody chose for their score.
        spread_errors: theirs, on prompt 0.
        num_steps: of the schedule.
    """
    raced = sorted(errors)
    common = set.intersection(*(set(errors[c]) for c in raced))
    own = [finalists[c] for c in raced]
    means = [float(np.mean([_log(errors[c][p]) for p in common])) for c in raced]
    everyone = [*own, *spread]
    logs = [*(_log(errors[c][0]) for c in raced), *map(_log, spread_errors)]
    known = bool(spread)
    return PredictorCheck(
        policies=len(everyone) if known else 0,
        all_score=spearman([c.score for c in everyone], logs) if known else math.nan,
        all_skipped=spearman(_skipped(everyone, num_steps), logs) if known else math.nan,
        finalists=len(own),
        prompts=len(common),
        equal_score=spearman([c.score for c in own], means),
        equal_skipped=spearman(_skipped(own, num_steps), means),
    )


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation; NaN when either never varies."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return math.nan
    return float(spearmanr(x, y).statistic)


def _skipped(candidates: Sequence[Candidate], num_steps: int) -> list[float]:
    return [float(candidate.policy.reused_blocks(num_steps)) for candidate in candidates]


def _log(error: float) -> float:
    return math.log(max(error, 1e-30))
