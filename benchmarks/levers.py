"""Section `levers`: corrected steps and guidance reuse by themselves, without any search.

Corrected steps are judged by the distance to the converged video (eight times the steps, the same
noise), because the video of the full length is not converged itself; guidance reuse by the distance
to the full length, whose steps it takes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.lab import Lab
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import mean_ci
from osp_opt.quality.metrics import MAX_PSNR, psnr
from osp_opt.sampling.schedule import TimestepSchedule

__all__ = ["run"]

CONVERGED = 8  # times the steps of the full length
CORRECTIONS = (0.0, 0.5, 1.0)
INTERVALS = (2, 3, 4)
Entrant = tuple[TimestepSchedule, CachePolicy | None]


def run(lab: Lab) -> dict[str, Any]:
    """PSNR of every entrant on fresh prompts, to the converged and to the full-length video."""
    entrants = _entrants(lab)
    requests = lab.judging(lab.size.noise_prompts)
    found = [_of_prompt(lab, entrants, request) for request in requests]
    rows = []
    for name, (schedule, policy) in entrants.items():
        speedup = 1.0 if policy is None else policy.speedup(lab.maker.num_blocks, len(schedule))
        rows.append(
            {
                "setting": name,
                "steps": len(schedule),
                # Counted in evaluations of blocks by a branch, not timed.
                "evaluations": len(lab.reference) / len(schedule) * speedup,
                **{
                    goal: mean_ci([values[name][goal] for values in found]).as_json()
                    for goal in ("to_converged", "to_full")
                },
            }
        )
    return {"rows": rows, "converged": CONVERGED * len(lab.reference)}


def _entrants(lab: Lab) -> dict[str, Entrant]:
    full = len(lab.reference)
    found: dict[str, Entrant] = {}
    for length in (full, *lab.size.lengths):
        for weight in CORRECTIONS:
            schedule = TimestepSchedule.uniform(length).corrected(weight)
            found[f"{length} uniform steps, correction {weight:g}"] = schedule, None
    for interval in INTERVALS:
        for order in (0, 1):
            plan = GuidancePlan.every(interval, full, order=order)
            policy = CachePolicy.explicit({}, full, guidance=plan)
            name = f"{full} steps, negative branch at 1 of {interval}, order {order}"
            found[name] = TimestepSchedule.uniform(full), policy
    return found


def _of_prompt(
    lab: Lab, entrants: dict[str, Entrant], request: Request
) -> dict[str, dict[str, float]]:
    """PSNR of each entrant's frames on one prompt."""
    frames: dict[str, np.ndarray[Any, Any]] = {}

    def converged() -> np.ndarray[Any, Any]:
        if "converged" not in frames:
            schedule = TimestepSchedule.uniform(CONVERGED * len(lab.reference))
            frames["converged"] = lab.maker.decode(lab.denoise(request, schedule).latents)
        return frames["converged"]

    def measure(name: str) -> dict[str, Any]:
        schedule, policy = entrants[name]
        cache = None if policy is None else BlockCache(policy)
        own = lab.maker.decode(lab.denoise(request, schedule, cache).latents)
        print(f"  {name}: {request.prompt}", flush=True)
        return {
            "to_converged": min(psnr(own, converged()), MAX_PSNR),
            "to_full": min(psnr(own, lab.full(request)), MAX_PSNR),
        }

    return {
        name: lab.remembered(
            f"lever {name} {request.seed} {request.prompt}", lambda name=name: measure(name)
        )
        for name in entrants
    }
