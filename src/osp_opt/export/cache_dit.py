"""cache-dit 1.5, and SGLang, which runs it: a policy as DBCache with a static mask of steps.

DBCache always runs its first Fn and last Bn blocks; at the steps masked 0 it adds the last change
of those between, at the others it runs them. That its results are those of `BlockCache` is tested
with cache-dit 1.5.3 itself. No torch, and no import of cache-dit.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.export.nearest import difference, nearest_single_range, refuse_guidance

__all__ = ["cache_dit_arguments", "cache_dit_config", "sglang_environment"]

_ALWAYS = 1e9  # a threshold on the change that no change exceeds: the mask alone decides
_FIRST_FORECAST_FROM = 3
"""The earliest step whose change TaylorSeer extrapolates from; before it reuses as order 0."""


def cache_dit_arguments(
    policy: CachePolicy, num_blocks: int, num_steps: int, *, calls_per_step: int = 1
) -> dict[str, Any]:
    """Keyword arguments of cache-dit's ``DBCacheConfig`` (1.5) that do what `policy` does.

    `calls_per_step` is 2 where a pipeline runs the transformer once for each guidance branch, 1
    where both are one batch (Open-Sora-Plan). For OpenSoraT2V::

        adapter = cache_dit.BlockAdapter(
            transformer=model, blocks=model.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_3, check_forward_pattern=False)
        config = cache_dit.DBCacheConfig(**cache_dit_arguments(policy, num_blocks, num_steps))
        cache_dit.enable_cache(adapter, cache_config=config)

    A policy of order 1 needs ``calibrator_config=TaylorSeerCalibratorConfig(taylorseer_order=1)``
    as well (`cache_dit_config` has both). A video that is broken off leaves the counting of steps
    behind: call ``cache_dit.refresh_context(model, num_inference_steps=...)`` then.

    Raises PolicyError for what cache-dit cannot do, with the nearest that it can: several ranges,
    reuse of block 0, a forecast from steps before 3.
    """
    if calls_per_step not in (1, 2):
        raise PolicyError(f"calls_per_step is {calls_per_step}; it must be 1 or 2")
    policy.validate(num_blocks, num_steps)
    refuse_guidance(policy, num_steps, "cache-dit")
    reused = [policy.reuse_ranges(step) for step in range(num_steps)]
    ranges = {blocks for step in reused for blocks in step}
    reason = None
    if len(ranges) > 1:
        reason = f"cache-dit reuses one range of blocks; this policy has {len(ranges)}"
    elif min(ranges)[0] == 0:
        reason = "cache-dit always runs block 0; this policy reuses it"
    elif policy.order and not _forecasts_agree([bool(step) for step in reused]):
        reason = f"cache-dit forecasts from step {_FIRST_FORECAST_FROM} on; this policy does before"
    if reason is not None:
        raise PolicyError(f"{reason}; {_nearest(policy, num_blocks, num_steps)}")
    ((start, end),) = ranges
    return {
        "Fn_compute_blocks": start,
        "Bn_compute_blocks": num_blocks - end,
        "num_inference_steps": num_steps,
        "steps_computation_mask": [int(not step) for step in reused],
        "steps_computation_policy": "static",
        "max_warmup_steps": 0,
        "residual_diff_threshold": _ALWAYS,
        "enable_separate_cfg": calls_per_step == 2,
        # Where the transformer alone is given to cache-dit it does not notice by itself, at its
        # first call, that another video begins.
        "force_refresh_step_hint": num_steps * calls_per_step,
        "force_refresh_step_policy": "repeat",
    }


def cache_dit_config(
    policy: CachePolicy, num_blocks: int, num_steps: int, *, calls_per_step: int = 1
) -> dict[str, Any]:
    """What ``cache_dit.load_configs`` reads, also from YAML: the cache and, if any, its forecast.

    Raises PolicyError as `cache_dit_arguments`.
    """
    arguments = cache_dit_arguments(policy, num_blocks, num_steps, calls_per_step=calls_per_step)
    if policy.order:
        arguments |= {"enable_taylorseer": True, "taylorseer_order": policy.order}
    return {"cache_config": arguments}


def sglang_environment(policy: CachePolicy, num_blocks: int, num_steps: int) -> dict[str, str]:
    """Environment variables with which SGLang's diffusion server runs `policy` by cache-dit.

    SGLang knows itself which of its models run the transformer twice a step, and begins anew for
    every request. Raises PolicyError as `cache_dit_arguments`.
    """
    arguments = cache_dit_arguments(policy, num_blocks, num_steps)
    runs = [(kept, len(list(same))) for kept, same in groupby(arguments["steps_computation_mask"])]
    return {
        "SGLANG_CACHE_DIT_ENABLED": "true",
        "SGLANG_CACHE_DIT_FN": str(arguments["Fn_compute_blocks"]),
        "SGLANG_CACHE_DIT_BN": str(arguments["Bn_compute_blocks"]),
        "SGLANG_CACHE_DIT_WARMUP": "0",
        "SGLANG_CACHE_DIT_MC": "-1",
        "SGLANG_CACHE_DIT_SCM_POLICY": "static",
        "SGLANG_CACHE_DIT_SCM_COMPUTE_BINS": ",".join(str(n) for kept, n in runs if kept),
        "SGLANG_CACHE_DIT_SCM_CACHE_BINS": ",".join(str(n) for kept, n in runs if not kept),
        "SGLANG_CACHE_DIT_TAYLORSEER": str(policy.order > 0).lower(),
        "SGLANG_CACHE_DIT_TS_ORDER": str(max(policy.order, 1)),
    }


def _forecasts_agree(reused: list[bool]) -> bool:
    """Whether TaylorSeer forecasts wherever the policy does.

    Both extrapolate linearly from the last two computed steps, but TaylorSeer does so only where
    the later of them is step 3 or beyond.
    """
    computed: list[int] = []
    for step, is_reused in enumerate(reused):
        if not is_reused:
            computed.append(step)
        elif len(computed) > 1 and computed[-1] < _FIRST_FORECAST_FROM:
            return False
    return True


def _nearest(policy: CachePolicy, num_blocks: int, num_steps: int) -> str:
    nearest = nearest_single_range(policy, num_blocks, num_steps)
    if nearest.order:
        plan = nearest.plan
        late = {s: plan[s] for s in range(_FIRST_FORECAST_FROM + 1, num_steps) if plan[s]}
        nearest = CachePolicy.explicit(late, num_steps, nearest.order)
    steps = sum(bool(ranges) for ranges in nearest.plan)
    ranges = {blocks for step in nearest.plan for blocks in step}
    if not ranges:
        return "nothing near it can be expressed"
    ((start, end),) = ranges
    off = difference(policy, nearest, num_blocks, num_steps)
    return f"the nearest that it can do is blocks {start}..{end - 1} at {steps} steps ({off})"
