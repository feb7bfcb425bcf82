"""The cache runtime beyond the reference's rule: plans, forecasts, branches, memory, misuse."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache, forecast_weights

SHAPE = (2, 5, 3)


def layers(change: Callable[[int], Tensor], count: int = 4) -> list[Callable[[Tensor], Tensor]]:
    """Blocks that add `change(block)` to the hidden state."""
    return [lambda x, i=i: x + change(i) for i in range(count)]


def final_error(policy: CachePolicy, change: Callable[[int, int], Tensor], steps: int) -> float:
    """Largest difference from the uncached blocks over the whole video."""
    cache = BlockCache(policy)
    worst = 0.0
    for step in range(steps):
        blocks = layers(lambda i, step=step: change(step, i))
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        exact = x
        for block in blocks:
            exact = block(exact)
        worst = max(worst, (cache.at(step)(blocks, x) - exact).abs().max().item())
    return worst


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize("order", [0, 1])
def test_order_k_is_exact_for_changes_of_degree_k(degree: int, order: int) -> None:
    """Unevenly spaced computed steps, ranges that differ between steps, a gap of two."""
    reuse = {4: [(0, 2), (3, 4)], 6: [(0, 2)], 7: [(0, 2)], 9: [(1, 4)]}
    policy = CachePolicy.explicit(reuse, 11, order=order)
    error = final_error(policy, lambda t, i: torch.full(SHAPE, (i + 1.0) * t**degree), 11)
    assert error < 1e-9 if order >= degree else error > 0.5


def test_weights_reproduce_lines() -> None:
    known, at = [7, 4], 9
    weights = forecast_weights(known, at)
    for line in (lambda k: 1.0, lambda k: k - 3.0):
        told = sum(w * line(k) for w, k in zip(weights, known, strict=True))
        assert told == pytest.approx(line(at))
    assert forecast_weights([7], at) == [1.0]


def drive(cache: BlockCache, steps: Sequence[int], branch: str = "both", rows: int = 2) -> Tensor:
    out = torch.empty(0)
    for step in steps:
        scale = len(branch) * (step + 1.0)
        x = torch.ones((rows, 3))
        out = cache.at(step, branch)(layers(lambda i, s=scale: torch.full((3,), s)), x)
    return out


def test_branches_keep_their_own_state() -> None:
    cache = BlockCache(CachePolicy.four_field(0, 4, 0, 3))
    for step in range(3):
        positive = drive(cache, [step], "text")
        negative = drive(cache, [step], "negative")
    assert positive.unique().tolist() == [1 + 4 * 4.0]
    assert negative.unique().tolist() == [1 + 4 * 8.0]


def test_reset_forgets_and_frees() -> None:
    cache = BlockCache(CachePolicy.four_field(1, 2, 1, 2))
    drive(cache, range(3))
    assert cache.memory_bytes() == 2 * 3 * 4
    cache.reset()
    assert cache.memory_bytes() == 0
    with pytest.raises(PolicyError, match="none stored"):
        drive(cache, [2])


def test_another_video_without_reset_never_reuses_the_old_one() -> None:
    cache = BlockCache(CachePolicy.four_field(1, 2, 1, 2))
    drive(cache, range(6))
    with pytest.raises(PolicyError, match="call reset"):
        drive(cache, [2])
    cache.reset()
    drive(cache, [0, 1])
    with pytest.raises(PolicyError, match="shape"):
        drive(cache, [2], rows=3)


def test_memory_never_exceeds_what_the_policy_states() -> None:
    reuse = {4: [(0, 2), (3, 4)], 6: [(0, 2)], 7: [(0, 2)], 9: [(1, 4)]}
    for order in range(2):
        policy = CachePolicy.explicit(reuse, 12, order=order)
        cache = BlockCache(policy)
        peak = 0
        for step in range(12):
            drive(cache, [step])
            peak = max(peak, cache.memory_bytes())
        assert peak <= policy.max_deltas() * 2 * 3 * 4
        assert cache.memory_bytes() == 0, "nothing is kept after the last use"


def test_storage_dtype_halves_memory_and_keeps_the_result_dtype() -> None:
    cache = BlockCache(CachePolicy.four_field(0, 4, 0, 2), dtype=torch.bfloat16, offload=True)
    drive(cache, [0])
    assert cache.memory_bytes() == 2 * 3 * 2
    assert drive(cache, [1]).dtype == torch.float32


def test_steps_without_cache_run_every_block() -> None:
    cache = BlockCache(CachePolicy.four_field(1, 2, 5, 2))
    assert drive(cache, [0]).unique().tolist() == [1 + 4 * 4.0]
    assert cache.memory_bytes() == 0


def test_a_plan_knows_its_number_of_steps() -> None:
    with pytest.raises(PolicyError, match="outside the 3 steps"):
        BlockCache(CachePolicy.explicit({2: [(0, 1)]}, 3)).at(3)
