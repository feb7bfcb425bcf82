"""Reuse at the full 50 steps: the negative branch, blocks, and other people's caches; recipes.

What is compared with the plain video is compared at equal work. Everything of ours is planned from
the recorded statistics alone, no candidates are sampled against each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.flow.bench import STEPS, Bench, Entrant
from benchmarks.flow.peers import peer_entrants
from benchmarks.flow.steps import corrections
from benchmarks.flow.steps import planned as planned_steps
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.quality.intervals import mean_ci
from osp_opt.search.cache.block_times import BlockTimes
from osp_opt.search.cache.moves import Move, guided_plans, plan_reuse
from osp_opt.search.cache.plans import free_candidates
from osp_opt.search.cache.scores import ReuseErrors

__all__ = ["run_cache", "run_guidance", "run_recipe"]

TARGETS = (1.5, 2.0, 3.0)
INTERVALS = (2, 3, 4)
MAX_AGE = 7
RECIPES = ((12, 1), (16, 2), (18, 3))  # steps, and how often the negative branch runs


def run_guidance(bench: Bench, prompts: list[str]) -> dict[str, Any]:
    """The negative branch at every k-th step only, d reused or forecast."""
    entrants = [Entrant(f"plain {STEPS} steps")]
    for interval in INTERVALS:
        for order in (0, 1):
            plan = GuidancePlan.every(interval, STEPS, order=order)
            policy = CachePolicy.explicit({}, STEPS, guidance=plan)
            how = "forecast" if order else "reused"
            entrants.append(Entrant(f"negative at 1 of {interval}, d {how}", cache=policy))
    return _judged(bench, entrants, prompts)


def run_cache(bench: Bench, prompts: list[str]) -> dict[str, Any]:
    """Our plans for each ratio beside every peer, to the plain video, at counted work."""
    entrants = [entrant for ratio in TARGETS for entrant in planned(bench, ratio)]
    peers, missing = peer_entrants(bench, TARGETS)
    return {**_judged(bench, [*entrants, *peers], prompts), "not_run": missing}


def planned(bench: Bench, ratio: float) -> list[Entrant]:
    """Blocks alone, the first of either order; and with the negative branch resting."""
    errors, weights, times = _planning(bench, STEPS, bench.own(STEPS))
    found: dict[str, CachePolicy] = {}
    for candidate in free_candidates(errors, weights, times, ratio, 8):
        found.setdefault(f"blocks, order {candidate.policy.order}", candidate.policy)
    for policy in guided_plans(errors, weights, times, ratio):
        assert policy.guidance is not None
        share = STEPS / (STEPS - len(policy.guidance.steps))
        found[f"negative at 1 of {share:.0f}, and blocks"] = policy
    return [Entrant(f"{ratio:g}x osp-opt, {name}", cache=policy) for name, policy in found.items()]


def run_recipe(bench: Bench, prompts: list[str]) -> dict[str, Any]:
    """At least four times less work: planned corrected steps, with and without reuse."""
    entrants = []
    for steps, interval in RECIPES:
        levels, weight = planned_steps(bench, steps)
        guidance = GuidancePlan.every(interval, steps) if interval > 1 else None
        resting = CachePolicy.explicit({}, steps, guidance=guidance) if guidance else None
        name = f"{steps} planned steps, a = {weight:g}"
        if interval > 1:
            name += f", negative at 1 of {interval}"
        entrants.append(Entrant(name, steps, levels, corrections(steps, weight), resting))
    levels, weight = planned_steps(bench, 25)
    for interval in (1, 2, 3):
        alone = 1.0 if interval == 1 else _resting(interval, 25)
        errors, weights, times = _planning(bench, 25, levels)
        policy = plan_reuse(Move(interval, 2.0 / alone), errors, weights, times)
        if policy is not None:
            name = f"25 planned steps, a = {weight:g}, {policy}"
            entrants.append(Entrant(name, 25, levels, corrections(25, weight), policy))
    entrants += [Entrant(f"{steps} own steps", steps) for steps in (25, 12)]
    return _judged(bench, entrants, prompts)


def _resting(interval: int, steps: int) -> float:
    plan = GuidancePlan.every(interval, steps)
    return CachePolicy.explicit({}, steps, guidance=plan).speedup(1, steps)


def _planning(
    bench: Bench, steps: int, levels: tuple[float, ...]
) -> tuple[ReuseErrors, np.ndarray, BlockTimes]:
    """What plans are made from: errors of reuse, weights of the steps, blocks taken as equal."""
    errors = ReuseErrors.of(bench.calibration, levels, MAX_AGE)
    times = BlockTimes((1.0,) * bench.pipeline.num_blocks, 0.0)
    return errors, importance(levels), times


def importance(levels: tuple[float, ...]) -> np.ndarray:
    """What an error of the velocity at each step does to the video, squared, up to a factor.

    A step moves x by ds v, and the way from there carries Gaussian data of unit variance on with
    the slope 1 / std(x_s), x_s = (1 - s) x0 + s eps.
    """
    s = np.append(np.array(levels), 0.0) / 1000.0
    here = s[:-1]
    weights: np.ndarray = np.square(here - s[1:]) / (np.square(1.0 - here) + np.square(here))
    return weights


def _judged(bench: Bench, entrants: list[Entrant], prompts: list[str]) -> dict[str, Any]:
    rows = bench.measure_all(entrants, prompts)
    found = []
    for entrant in entrants:
        mine = rows[entrant.name]
        found.append(
            {
                "name": entrant.name,
                "steps": entrant.steps,
                "speedup": mean_ci([bench.plain_work / row["work"] for row in mine]).as_json(),
                **{
                    goal: mean_ci([row[goal] for row in mine]).as_json()
                    for goal in ("to_converged", "to_plain")
                },
                "all_right": float(np.mean([row["all_right"] for row in mine])),
            }
        )
    return {"rows": found, "prompts": len(prompts)}
