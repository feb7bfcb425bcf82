"""A policy in the words of other libraries. No torch, and no import of them."""

from __future__ import annotations

from typing import Any

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy

__all__ = ["cache_dit_arguments"]

_ALWAYS = 1e9  # a threshold on the change that no change exceeds: the mask alone decides


def cache_dit_arguments(policy: CachePolicy, num_blocks: int, num_steps: int) -> dict[str, Any]:
    """Keyword arguments of cache-dit's ``DBCacheConfig`` (1.5) that do what `policy` does.

    DBCache always runs its first Fn and last Bn blocks and, by a static mask of steps, runs or
    reuses those between. For OpenSoraT2V::

        adapter = cache_dit.BlockAdapter(
            transformer=model, blocks=model.transformer_blocks,
            forward_pattern=cache_dit.ForwardPattern.Pattern_3, check_forward_pattern=False)
        config = cache_dit.DBCacheConfig(**cache_dit_arguments(policy, num_blocks, num_steps))
        cache_dit.enable_cache(adapter, cache_config=config)

    Raises PolicyError for what it cannot express: several ranges, forecasts, or reuse of block 0.
    """
    policy.validate(num_blocks, num_steps)
    if policy.guidance is not None:
        raise PolicyError("this policy also reuses guidance; cache-dit knows nothing like it")
    reused = [policy.reuse_ranges(step) for step in range(num_steps)]
    ranges = {blocks for step in reused for blocks in step}
    if len(ranges) != 1 or any(len(step) > 1 for step in reused):
        raise PolicyError(f"cache-dit reuses one range of blocks; this policy has {len(ranges)}")
    if policy.order:
        raise PolicyError("this policy forecasts; cache-dit's forecast is configured otherwise")
    ((start, end),) = ranges
    if start == 0:
        raise PolicyError("cache-dit always runs block 0; this policy reuses it")
    return {
        "Fn_compute_blocks": start,
        "Bn_compute_blocks": num_blocks - end,
        "num_inference_steps": num_steps,
        "steps_computation_mask": [int(not step) for step in reused],
        "steps_computation_policy": "static",
        "max_warmup_steps": 0,
        "residual_diff_threshold": _ALWAYS,
        "enable_separate_cfg": False,
    }
