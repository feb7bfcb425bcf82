"""apply_cache on Wan (one stream) and Flux (two): how steps and branches are told; its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from helpers.dummy_transformers import Dummy, flux, wan
from osp_opt.base.errors import PolicyError
from osp_opt.cache.hooks import apply_cache
from osp_opt.cache.policy import CachePolicy

STEPS = 6


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.mark.parametrize("make", [wan, flux])
def test_skipped_blocks_do_not_run(make: Callable[[], Dummy]) -> None:
    made = make()
    ran: list[int] = []
    for index, block in enumerate(made.blocks):
        first = next(child for child in block.children() if isinstance(child, nn.Module))
        first.register_forward_hook(lambda *_, i=index: ran.append(i))
    handle = apply_cache(made.model, CachePolicy.four_field(1, 2, 1, 2))
    for step in range(STEPS):
        with handle.at(step):
            made.call(step)
    assert ran.count(0) == STEPS
    assert ran.count(1) == ran.count(2) == STEPS - 2
    assert handle.memory_bytes() > 0
    handle.reset()
    assert handle.memory_bytes() == 0


def test_step_from_a_pipelines_callback_and_branch_from_its_cache_context() -> None:
    made = wan()
    transformer: Any = made.model
    handle = apply_cache(transformer, CachePolicy.four_field(1, 2, 0, 3))
    for step in range(3):
        for branch in ("cond", "uncond"):
            with transformer.cache_context(branch):
                made.call(step)
        assert handle.on_step_end(None, step, None, {"latents": 1}) == {"latents": 1}
    assert handle.memory_bytes() == 2 * (2 * 2 * 2) * 24 * 4  # branches, tokens, width, float32
    with transformer.cache_context("cond", step_index=3):
        made.call(3)
    with (
        transformer.cache_context("cond"),
        pytest.raises(PolicyError, match="ran again at step 3, branch 'cond'"),
    ):
        made.call(3)


def test_calling_twice_without_telling_the_step_is_an_error() -> None:
    made = wan()
    apply_cache(made.model, CachePolicy.four_field(1, 2, 0, 3))
    made.call(0)
    with pytest.raises(PolicyError, match="tell the step"):
        made.call(1)


def test_what_cannot_work_is_refused() -> None:
    transformer = wan().model
    with pytest.raises(PolicyError, match="block 4 of 4"):
        apply_cache(transformer, CachePolicy.four_field(2, 3, 0, 2))
    with pytest.raises(PolicyError, match="at most 4"):
        apply_cache(transformer, CachePolicy.four_field(2, 2, 5, 2), num_steps=6)
    with pytest.raises(PolicyError, match="no list of blocks"):
        apply_cache(nn.Linear(2, 2), CachePolicy.four_field(0, 1, 0, 2))
    handle = apply_cache(transformer, CachePolicy.four_field(1, 2, 0, 2))
    with pytest.raises(PolicyError, match="already has a cache"):
        apply_cache(transformer, CachePolicy.four_field(1, 2, 0, 2))
    handle.remove()
    apply_cache(transformer, CachePolicy.four_field(1, 2, 0, 2)).remove()
