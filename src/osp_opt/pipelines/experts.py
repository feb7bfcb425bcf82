"""Two transformers, one after the other (Wan 2.2): what the first stored is not for the second."""

from __future__ import annotations

from collections.abc import Sequence

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy

__all__ = ["check_experts", "first_below"]


def first_below(timesteps: Sequence[float], boundary: float | None) -> int:
    """Index of the first step that a second transformer makes; 0 where there is one only."""
    return 0 if boundary is None else sum(t >= boundary for t in timesteps)


def check_experts(policy: CachePolicy, timesteps: Sequence[float], boundary: float | None) -> None:
    """Raise PolicyError where a step below `boundary` (None: there is none) would reuse what a step
    above it stored.
    """
    if boundary is None:
        return
    first = first_below(timesteps, boundary)
    stored: dict[tuple[int, int], int] = {}
    for step in range(len(timesteps)):
        for blocks in policy.reuse_ranges(step):
            source = stored.get(blocks, 0)
            if source < first <= step:
                raise PolicyError(
                    f"step {step} is made by the second transformer and reuses step {source} of "
                    f"the first: a policy here has to store at step {first}"
                )
        stored |= dict.fromkeys(policy.store_ranges(step), step)
    if 0 < first < len(timesteps) and policy.reuses_guidance(first):
        raise PolicyError(
            f"step {first} is the first of the second transformer and reuses the guidance of the "
            "first one: a policy here has to run both branches at that step"
        )
