"""Section `four-field`: what four numbers can do at 1.3x at best, beside what searches find.

All policies of the reference's form (first block, number of blocks, first step, interval) that save
the work are enumerated and scored by the recorded table. The best-scored ones, of all and of every
interval, are sampled on prompts that decide. Its own procedure searches on the same prompts. The
least error there is a bound that no search of this form can beat by choosing better; on fresh
prompts both choices are judged.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.cache import GOAL_RATIO, pixel_error, reference_entrant
from benchmarks.field import DECIDING, equal_times
from benchmarks.lab import Lab
from benchmarks.predictor import probed_importance
from osp_opt.cache.policy import CachePolicy, FourField
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import ratio_ci
from osp_opt.search.cache.candidates import MAX_INTERVAL
from osp_opt.search.cache.scores import ReuseErrors, four_field_scores

__all__ = ["enumerated", "run"]

SAMPLED, OF_EACH_INTERVAL = 16, 3


def run(lab: Lab) -> dict[str, Any]:
    """Enumerate, sample the best-scored, and compare with the reference procedure's choice."""
    blocks, steps = lab.maker.num_blocks, len(lab.reference)
    errors = ReuseErrors.of(lab.calibration, lab.reference.timesteps, MAX_INTERVAL - 1)
    intervals = range(2, MAX_INTERVAL + 1)
    scores = four_field_scores(errors, probed_importance(lab, errors), intervals)

    def score(rule: FourField) -> float:
        start, end = rule.blocks
        return float(scores[rule.step_interval - 2, rule.step_start, start, end])

    reaching = sorted(enumerated(blocks, steps, GOAL_RATIO), key=score)
    picked = reaching[:SAMPLED]
    for interval in intervals:
        own = [rule for rule in reaching if rule.step_interval == interval]
        picked += own[:OF_EACH_INTERVAL]
    policies = [CachePolicy(rule=rule) for rule in dict.fromkeys(picked)]
    deciding, judging = lab.deciding(DECIDING), lab.judging(lab.size.field_prompts)
    reference = CachePolicy.from_json(reference_entrant(lab, equal_times(lab))[1]["policy"])
    print(f"  {len(reaching)} reach {GOAL_RATIO}x, {len(policies)} are sampled", flush=True)
    chosen = min(policies, key=lambda policy: _mean_error(lab, policy, deciding))
    told = {
        name: {
            "policy": str(policy),
            "counted": policy.speedup(blocks, steps),
            "deciding": _mean_error(lab, policy, deciding),
            "fresh": [pixel_error(lab, policy, request) for request in judging],
        }
        for name, policy in (("reference", reference), ("best", chosen))
    }
    ratios = np.array(told["best"]["fresh"]) / np.array(told["reference"]["fresh"])
    return {
        "reaching": len(reaching),
        "sampled": len(policies),
        "deciding_prompts": len(deciding),
        "prompts": len(judging),
        **told,
        "bound": told["best"]["deciding"] / told["reference"]["deciding"],
        "ratio": ratio_ci(ratios.tolist()).as_json(),
    }


def enumerated(blocks: int, steps: int, ratio: float) -> list[FourField]:
    """Every rule that saves the work, blocks taken as equal."""
    needed = blocks * steps * (1.0 - 1.0 / ratio)
    return [
        rule
        for interval in range(2, MAX_INTERVAL + 1)
        for first in range(steps)
        for num in range(1, blocks + 1)
        if FourField(0, num, first, interval).count_reuses(steps) * num >= needed
        for rule in (FourField(a, num, first, interval) for a in range(blocks - num + 1))
    ]


def _mean_error(lab: Lab, policy: CachePolicy, requests: list[Request]) -> float:
    """Mean squared error of the frames over prompts."""
    return float(np.mean([pixel_error(lab, policy, request) for request in requests]))
