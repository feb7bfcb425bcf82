"""Section `predictor`: does the score of a cache policy rank what policies really do to a video?

Policies of four fields are drawn whatever their score is: some at each of a few equal costs, some
of all costs. All are sampled on fresh prompts. Spearman's rank correlation with the measured error
of the latents (log, mean over prompts) is reported for the tool's score, for other weights of the
steps, and for the trivial predictors: skipped blocks, and recorded change alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.cache import block_times, policy_error
from benchmarks.lab import Lab
from osp_opt.cache.policy import CachePolicy
from osp_opt.pipelines.maker import Request
from osp_opt.search.cache.candidates import MAX_INTERVAL
from osp_opt.search.cache.check import spearman
from osp_opt.search.cache.probes import importance_probes, measured_importance
from osp_opt.search.cache.scores import (
    ReuseErrors,
    gaussian_importance,
    policy_score,
)

__all__ = ["draw", "probed_importance", "run"]

COSTS = (1.3, 1.5, 2.0)
SAME_COST = 1.03  # of policies that count as equally fast
FloatArray = np.ndarray[Any, np.dtype[np.float64]]


def run(lab: Lab) -> dict[str, Any]:
    """Draw, sample and compare; the section's results."""
    drawn = draw(lab, lab.size.predictor_policies)
    requests = lab.judging(lab.size.predictor_prompts)
    measured = measure(lab, drawn, requests)
    predictors = predictors_of(lab)
    rows = []
    for group, policies in drawn.items():
        logs = [measured[policy] for policy in policies]
        rows.append(
            {
                "group": group,
                "policies": len(policies),
                "correlations": {
                    name: _known(spearman([predict(policy) for policy in policies], logs))
                    for name, predict in predictors.items()
                },
            }
        )
    return {"rows": rows, "prompts": len(requests)}


def draw(lab: Lab, count: int) -> dict[str, list[CachePolicy]]:
    """`count` policies of each cost, and all of these with as many of other costs."""
    times, steps = block_times(lab), lab.size.steps
    rng = np.random.default_rng(lab.seed)

    def some(low: float, high: float) -> CachePolicy:
        while True:
            policy = _any_policy(rng, len(times.blocks), steps)
            if low <= times.speedup(policy, steps) <= high:
                return policy

    groups = {
        f"{cost:g}x": _different(lambda c=cost: some(c, c * SAME_COST), count) for cost in COSTS
    }
    others = _different(lambda: some(1.0, np.inf), count)
    everything = [policy for policies in groups.values() for policy in policies]
    return groups | {"all": list(dict.fromkeys([*everything, *others]))}


def _any_policy(rng: np.random.Generator, num_blocks: int, steps: int) -> CachePolicy:
    start = int(rng.integers(num_blocks))
    num = int(rng.integers(1, num_blocks - start + 1))
    interval = int(rng.integers(2, MAX_INTERVAL + 1))
    return CachePolicy.four_field(start, num, int(rng.integers(steps - 1)), interval)


def _different(drawn: Callable[[], CachePolicy], count: int) -> list[CachePolicy]:
    found: dict[CachePolicy, None] = {}
    while len(found) < count:
        found[drawn()] = None
    return list(found)


def measure(
    lab: Lab, drawn: dict[str, list[CachePolicy]], requests: Sequence[Request]
) -> dict[CachePolicy, float]:
    """Mean over requests of the logarithm of every policy's latent error."""
    policies = drawn["all"]
    logs = []
    for number, request in enumerate(requests):
        logs.append([np.log(policy_error(lab, policy, request)) for policy in policies])
        print(f"  predictor: prompt {number + 1} of {len(requests)}", flush=True)
    return dict(zip(policies, np.mean(logs, axis=0).tolist(), strict=True))


def predictors_of(lab: Lab) -> dict[str, Callable[[CachePolicy], float]]:
    """Every way to rank policies that is compared, by name."""
    errors, steps = _errors(lab), lab.size.steps
    weights = {
        "score of search-cache": probed_importance(lab, errors),
        "score, Gaussian weights": gaussian_importance(lab.calibration, lab.reference.timesteps),
        "score, all steps alike": np.ones(steps),
    }
    found: dict[str, Callable[[CachePolicy], float]] = {}
    for name, weight in weights.items():
        found[name] = lambda policy, w=weight: policy_score(policy, errors, w)  # type: ignore[misc]
    found["recorded change alone"] = lambda policy: _change(policy, errors)
    found["skipped blocks"] = lambda policy: float(policy.reused_blocks(steps))
    return found


def probed_importance(lab: Lab, errors: ReuseErrors) -> FloatArray:
    """The weights that search-cache measures, here on a prompt that judges nothing, [S]."""
    probes = importance_probes(errors)
    request = lab.deciding(1)[0]
    measured = [policy_error(lab, probe.policy, request) for probe in probes]
    return measured_importance(errors, probes, measured)


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _change(policy: CachePolicy, errors: ReuseErrors) -> float:
    """Recorded errors of all reuses, added as they are."""
    total, source = 0.0, 0
    assert policy.rule is not None
    a, b = policy.rule.blocks
    for step in range(errors.num_steps):
        if policy.reuse_ranges(step):
            total += float(errors.table[:, step, step - source - 1, a, b].mean())
        else:
            source = step
    return total


def _errors(lab: Lab) -> ReuseErrors:
    timesteps = lab.reference.timesteps
    return ReuseErrors.of(lab.calibration, timesteps, min(MAX_INTERVAL, lab.size.steps) - 1)
