"""What fresh videos show of a recipe, beside plain even steps of the same speed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from osp_opt.quality.intervals import Interval, mean_ci, paired_difference
from osp_opt.quality.loss import Verdict
from osp_opt.search.evidence import Evidence, evidence_of, log_error_ratios
from osp_opt.search.recipe.state import TIMED_VIDEOS, RecipeCandidate, RecipeSearch
from osp_opt.search.trials import Variant

__all__ = ["Found", "prove"]


@dataclass(frozen=True)
class Found:
    """A recipe and its proof.

    evidence: of the recipe against the original; plain: of plain even steps of the same speed;
    gain: by how many dB the recipe is nearer, in pairs; better: whether the fresh videos show it to
    be nearer (95 % of the log error ratio below zero). race: who raced, with errors per prompt.
    """

    candidate: RecipeCandidate
    evidence: Evidence
    plain_variant: Variant
    plain: Evidence
    gain: Interval
    better: bool
    race: list[tuple[RecipeCandidate, list[float]]]
    videos: list[dict[str, Any]]

    def verdict(self, max_loss: float | None) -> Verdict | None:
        """Whether a limit was kept, where there is one."""
        return None if max_loss is None else self.evidence.loss.verdict(max_loss)


def prove(
    search: RecipeSearch,
    chosen: RecipeCandidate,
    race: list[tuple[RecipeCandidate, list[float]]],
) -> Found:
    """Make and time the recipe on videos that chose nothing."""
    fresh = search.fresh_requests
    plain = search.plain(chosen.speedup)
    own, even = search.trials.compared([chosen.variant, plain], fresh)
    speedups = search.trials.speedups(chosen.variant, fresh[:TIMED_VIDEOS])
    return Found(
        chosen,
        evidence_of(own, speedups),
        plain,
        evidence_of(even),
        paired_difference([row["psnr"] for row in own], [row["psnr"] for row in even]),
        mean_ci(log_error_ratios(own, even)).high < 0.0,
        race,
        [
            {"prompt": r.prompt, "seed": r.seed, "recipe": own[i], "plain": even[i]}
            for i, r in enumerate(fresh)
        ],
    )
