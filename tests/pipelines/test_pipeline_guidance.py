"""Guidance reused in a pipeline that calls its transformer twice a step (tests/cache/test_branches
has more kinds of pipelines, and what is refused).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline

STEPS = 6
PROMPT = "a red ball"


@pytest.mark.parametrize("order", [0, 1])
def test_the_negative_branch_rests_and_its_output_is_forecast(order: int, tiny: Any) -> None:
    """The video is that of a loop written out by hand, with the same transformer."""
    pipe, arguments = tiny["wan"]
    driven = DiffusersPipeline(pipe, {**arguments, "guidance_scale": 3.0})
    plan = GuidancePlan.every(2, STEPS, order=order)
    calls: list[int] = []
    hook = pipe.transformer.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    policy = CachePolicy.explicit({}, STEPS, guidance=plan)
    made = driven.denoise(PROMPT, 3, STEPS, cache=policy)
    hook.remove()

    assert len(calls) == 2 * STEPS - len(plan.steps)
    expected = _by_hand(pipe, driven, plan)
    torch.testing.assert_close(made.latents, expected, rtol=1e-5, atol=1e-6)
    plain = driven.denoise(PROMPT, 3, STEPS)
    assert not torch.equal(made.latents, plain.latents)


def _by_hand(pipe: Any, driven: DiffusersPipeline, plan: GuidancePlan) -> Tensor:
    seen: list[Tensor] = []
    driven.denoise(PROMPT, 3, STEPS, on_step=lambda step: seen.append(step.latents))
    given = dict(driven.arguments)
    length = given.get("max_sequence_length", 512)
    positive, negative = pipe.encode_prompt(PROMPT, "", True, max_sequence_length=length)
    generator = torch.Generator("cpu").manual_seed(3)
    x = torch.randn(seen[0].shape, generator=generator, dtype=torch.float32)
    s = [t / 1000.0 for t in driven.own_levels(STEPS)] + [0.0]
    known: list[tuple[int, Tensor]] = []
    for i in range(STEPS):
        time = torch.tensor([1000.0 * s[i]])
        with torch.no_grad():
            cond = pipe.transformer(x, time, positive, return_dict=False)[0]
            if not plan.reuses(i):
                uncond = pipe.transformer(x, time, negative, return_dict=False)[0]
                known.append((i, cond - uncond))
                difference = cond - uncond
            elif plan.order == 0:
                difference = known[-1][1]
            else:
                (a, first), (b, second) = known[-2:]
                difference = second + (second - first) * (i - b) / (b - a)
        v = cond + 2.0 * difference
        x = x + (s[i + 1] - s[i]) * v
    return x


def test_guidance_and_blocks_are_reused_together(tiny: Any) -> None:
    """A policy of both runs as many blocks as it says."""
    pipe, arguments = tiny["wan"]
    driven = DiffusersPipeline(pipe, {**arguments, "guidance_scale": 3.0})
    blocks = driven.num_blocks
    plan = GuidancePlan((3,), order=0)
    policy = CachePolicy.explicit({3: [(0, 1)], 4: [(0, 1)]}, STEPS, guidance=plan)
    runs: list[int] = []
    # What a cache leaves out is a block's inside; the block itself is called and hooked.
    hooks = [
        b.ffn.register_forward_hook(lambda *_: runs.append(1)) for b in pipe.transformer.blocks
    ]
    driven.denoise(PROMPT, 3, STEPS, cache=policy)
    for hook in hooks:
        hook.remove()
    total = 2 * blocks * STEPS
    assert len(runs) == round(total / policy.speedup(blocks, STEPS))
    plain = driven.denoise(PROMPT, 3, STEPS).latents
    assert torch.equal(plain, driven.denoise(PROMPT, 3, STEPS).latents)
