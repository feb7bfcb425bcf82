"""What fresh videos show of a recipe, beside plain steps of the same speed.

The original is no truth: it errs by its own steps, and a recipe may come nearer to what more and
more steps converge to than to it. So both distances are told, and the one to the converged video,
for which finer steps of the same noise stand, says which recipe is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from osp_opt.quality.intervals import Interval, mean_ci, paired_difference
from osp_opt.quality.loss import Verdict
from osp_opt.search.evidence import Evidence, evidence_of, log_error_ratios
from osp_opt.search.recipe.state import PROVING, TIMED_VIDEOS, RecipeCandidate, RecipeSearch
from osp_opt.search.trials import Variant

__all__ = ["Found", "prove"]


@dataclass(frozen=True)
class Found:
    """A recipe and its proof.

    evidence: of the recipe against the original; plain: of plain steps of the same speed.
    finer: what stands for the converged video; near, plain_near, original_near: PSNR to it, in dB;
    gain: by how many the recipe is nearer to it than plain steps, in pairs; better: whether the
    fresh videos show that (95 % of the log error ratio below zero). race: who raced, with errors
    per prompt.
    """

    candidate: RecipeCandidate
    evidence: Evidence
    plain_variant: Variant
    plain: Evidence
    finer: Variant
    near: Interval
    plain_near: Interval
    original_near: Interval
    gain: Interval
    better: bool
    race: list[tuple[RecipeCandidate, list[float]]]
    videos: list[dict[str, Any]]

    def verdict(self, max_loss: float | None) -> Verdict | None:
        """Whether a limit was kept, where there is one."""
        return None if max_loss is None else self.evidence.loss.verdict(max_loss)

    def lines(self) -> list[str]:
        """What was lost, for the terminal."""
        of = len(self.plain_variant.schedule)
        told = {
            "the recipe": self.near,
            f"{of} plain steps": self.plain_near,
            "the original": self.original_near,
        }
        values = ", ".join(
            f"{name} {psnr.text(digits=1, unit=' dB')}" for name, psnr in told.items()
        )
        return [
            *self.evidence.lines(),
            f"to the converged video ({len(self.finer.schedule)} steps, same noise): {values}",
            f"nearer to it than {of} plain steps by {self.gain.text(digits=1, unit=' dB')}",
        ]

    def as_json(self) -> dict[str, Any]:
        """The figures; intervals as objects."""
        return {
            "measured": {
                **self.evidence.as_json(),
                "converged_steps": len(self.finer.schedule),
                "converged_psnr": self.near.as_json(),
                "original_converged_psnr": self.original_near.as_json(),
            },
            "plain": {
                "steps": len(self.plain_variant.schedule),
                **self.plain.as_json(),
                "converged_psnr": self.plain_near.as_json(),
                "psnr_gain": self.gain.as_json(),
                "shown_better": self.better,
            },
            "verified_on": self.videos,
        }


def prove(
    search: RecipeSearch,
    chosen: RecipeCandidate,
    race: list[tuple[RecipeCandidate, list[float]]],
) -> Found:
    """Make and time the recipe on videos that chose nothing."""
    fresh = search.fresh_requests
    plain = search.plain(chosen.speedup)
    finer = search.finer(chosen.speedup, PROVING)
    own, even = search.trials.compared([chosen.variant, plain], fresh, finer)
    speedups = search.trials.speedups(chosen.variant, fresh[:TIMED_VIDEOS])
    near, plain_near = ([row["converged_psnr"] for row in rows] for rows in (own, even))
    return Found(
        chosen,
        evidence_of(own, speedups),
        plain,
        evidence_of(even),
        finer,
        mean_ci(near),
        mean_ci(plain_near),
        mean_ci([row["converged_psnr_before"] for row in own]),
        paired_difference(near, plain_near),
        mean_ci(log_error_ratios(own, even, "converged_mse")).high < 0.0,
        race,
        [
            {"prompt": r.prompt, "seed": r.seed, "recipe": own[i], "plain": even[i]}
            for i, r in enumerate(fresh)
        ],
    )
