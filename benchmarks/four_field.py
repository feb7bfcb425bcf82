"""Section `four-field`: what four numbers can do at 1.3x at best, beside what a procedure finds.

Policies of the reference's form have a first block, a number of blocks, a first step and an
interval. Of every interval, number and first block there is one latest first step that still saves
the work; all these are sampled on one prompt, and the best of them on a few, beside the choice of
the reference's procedure. The least error is about what no search of this form can beat by choosing
better. Fresh prompts judge both.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np

from benchmarks.cache import GOAL_RATIO, pixel_error, reference_entrant
from benchmarks.field import equal_times
from benchmarks.lab import Lab
from osp_opt.cache.policy import CachePolicy, FourField
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import ratio_ci
from osp_opt.quality.metrics import log_error
from osp_opt.search.cache.candidates import MAX_INTERVAL

__all__ = ["enumerated", "run"]

FINALISTS, DECIDING = 16, 3  # policies that are sampled on all deciding prompts, and these


def run(lab: Lab) -> dict[str, Any]:
    """Enumerate, sample, and compare with the reference procedure's choice."""
    blocks, steps = lab.maker.num_blocks, len(lab.reference)
    first, *others = lab.deciding(DECIDING)
    reference = CachePolicy.from_json(reference_entrant(lab, equal_times(lab))[1]["policy"])
    policies = [CachePolicy(rule=rule) for rule in enumerated(blocks, steps, GOAL_RATIO)]
    print(f"  {len(policies)} save the work", flush=True)
    policies.sort(key=lambda policy: pixel_error(lab, policy, first))
    finalists = policies[:FINALISTS]
    chosen = min(finalists, key=lambda policy: _log_error(lab, policy, [first, *others]))
    judging = lab.judging(lab.size.field_prompts)
    told = {
        name: {
            "policy": str(policy),
            "counted": policy.speedup(blocks, steps),
            "deciding": math.exp(_log_error(lab, policy, [first, *others])),
            "fresh": [pixel_error(lab, policy, request) for request in judging],
        }
        for name, policy in (("reference", reference), ("best", chosen))
    }
    ratios = np.array(told["best"]["fresh"]) / np.array(told["reference"]["fresh"])
    return {
        "sampled": len(policies),
        "deciding_prompts": DECIDING,
        "prompts": len(judging),
        **told,
        "bound": told["best"]["deciding"] / told["reference"]["deciding"],
        "ratio": ratio_ci(ratios.tolist()).as_json(),
    }


def enumerated(blocks: int, steps: int, ratio: float) -> list[FourField]:
    """Every interval, number of blocks and first block, with the latest first step that saves the
    work, blocks taken as equal.
    """
    needed = blocks * steps * (1.0 - 1.0 / ratio)
    found = []
    for interval, num in product(range(2, MAX_INTERVAL + 1), range(1, blocks + 1)):
        saving = [
            first
            for first in range(steps)
            if FourField(0, num, first, interval).count_reuses(steps) * num >= needed
        ]
        ranges = range(blocks - num + 1) if saving else ()
        found += [FourField(a, num, saving[-1], interval) for a in ranges]
    return found


def _log_error(lab: Lab, policy: CachePolicy, requests: list[Request]) -> float:
    """Mean over prompts of the logarithm of the frames' squared error."""
    return float(np.mean(log_error([pixel_error(lab, policy, request) for request in requests])))
