"""Guidance reuse in transformers that others call, against plain evaluations and torch's hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers.dummy_transformers import STEPS, Dummy, by_hand, cogvideox, flux, ltx, rand, sd3, wan
from helpers.tiny_pipelines import FAMILIES
from osp_opt.base.errors import PolicyError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.hooks import CacheHandle, apply_cache
from osp_opt.cache.policy import CachePolicy
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline

PLANS = [
    CachePolicy.explicit({}, STEPS, guidance=GuidancePlan((1, 3), order=0)),
    CachePolicy.explicit({}, STEPS, guidance=GuidancePlan((2, 3), order=1)),
    CachePolicy.explicit({2: [(0, 2)], 3: [(0, 2)]}, STEPS, 0, GuidancePlan((3,), order=1)),
]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def negative_text(made: Dummy) -> Tensor:
    text = made.given["encoder_hidden_states"]
    return rand(*text.shape, seed=77)


def evaluations(made: Dummy, policy: CachePolicy, call: Callable[[int], Tensor]) -> list[Tensor]:
    """Every step's output of one branch, with the policy's blocks reused."""
    if not policy.plan[2]:
        return [call(step) for step in range(STEPS)]
    return by_hand(made.blocks, call, 0, 2, made.streams)


def forecast(policy: CachePolicy, differences: dict[int, Tensor], step: int) -> Tensor:
    plan = policy.guidance
    assert plan is not None
    known = sorted(differences)[-(plan.order + 1) :]
    if len(known) == 1:
        return differences[known[0]]
    older, newest = known
    ahead = (step - newest) / (newest - older)
    return (1.0 + ahead) * differences[newest] - ahead * differences[older]


@pytest.mark.parametrize("policy", PLANS, ids=str)
@pytest.mark.parametrize("make", [wan, sd3, flux])
def test_two_calls_a_step_equal_arithmetic_by_hand(
    make: Callable[[], Dummy], policy: CachePolicy
) -> None:
    made = make()
    other = negative_text(made)
    positives = evaluations(made, policy, made.call)
    negatives = evaluations(made, policy, lambda s: made.call(s, encoder_hidden_states=other))
    expected, differences = [], dict[int, Tensor]()
    for step, positive in enumerate(positives):
        if policy.reuses_guidance(step):
            expected.append((positive, positive - forecast(policy, differences, step)))
        else:
            differences[step] = positive - negatives[step]
            expected.append((positive, negatives[step]))

    ran: list[int] = []
    made.blocks[-1].register_forward_hook(lambda *_: ran.append(1))
    handle = apply_cache(made.model, policy)

    def video() -> list[tuple[Tensor, Tensor]]:
        found = []
        for step in range(STEPS):
            with handle.at(step, "positive"):
                positive = made.call(step)
            returned = positive.clone()
            positive.add_(1)  # a pipeline may do that with what is its own
            with handle.at(step, "negative"):
                found.append((returned, made.call(step, encoder_hidden_states=other)))
            held.append(handle.memory_bytes())
            told.append(handle.bytes_needed())
        return found

    held: list[int] = []
    told: list[int] = []

    for _ in range(2):  # two videos in a row
        for (a, b), (c, d) in zip(video(), expected, strict=True):
            assert torch.equal(a, c)
            torch.testing.assert_close(b, d, rtol=1e-5, atol=1e-6)
            # to the bit where nothing is forecast
            assert torch.equal(b, d) or (policy.guidance and policy.guidance.order == 1)
    assert policy.guidance is not None
    assert len(ran) == 2 * (2 * STEPS - len(policy.guidance.steps))
    assert len(set(told)) == 1
    assert 0 < max(held) <= told[0] <= 2 * max(held)
    handle.remove()
    assert handle.memory_bytes() == 0
    assert torch.equal(made.call(2), made.call(2))


def both(made: Dummy, step: int, rows: int = 2) -> Tensor:
    """A batch of both branches, negative half first, or its last `rows`."""
    videos = made.latents[0]
    given: dict[str, Any] = {"hidden_states": torch.cat([rand(*made.latents, seed=step)] * 2)}
    for name, value in made.given.items():
        other = negative_text(made) if name == "encoder_hidden_states" else value
        given[name] = torch.cat([other, value]) if isinstance(value, Tensor) else value
    taken = {k: v[-rows * videos :] if isinstance(v, Tensor) else v for k, v in given.items()}
    return made.call(step, **taken)


@pytest.mark.parametrize("policy", PLANS, ids=str)
@pytest.mark.parametrize("make", [wan, ltx, cogvideox])
def test_a_batch_of_both_equals_arithmetic_by_hand(
    make: Callable[[], Dummy], policy: CachePolicy
) -> None:
    made = make()
    outputs = evaluations(
        made, policy, lambda step: both(made, step, 1 if policy.reuses_guidance(step) else 2)
    )
    expected, differences = [], dict[int, Tensor]()
    for step, output in enumerate(outputs):
        if policy.reuses_guidance(step):
            d = forecast(policy, differences, step)
            expected.append(torch.cat([output - d, output]))
        else:
            negative, positive = output.chunk(2)
            differences[step] = positive - negative
            expected.append(output)
    handle = apply_cache(made.model, policy)
    for _ in range(2):
        for step in range(STEPS):
            with handle.at(step):
                found = both(made, step)
            torch.testing.assert_close(found, expected[step], rtol=1e-5, atol=1e-6)
            half = len(found) // 2
            assert torch.equal(found[half:], expected[step][half:])
            assert torch.equal(found, expected[step]) or policy.guidance.order == 1  # type: ignore[union-attr]


def test_what_is_no_guidance_is_refused() -> None:
    made = ltx()
    plan = CachePolicy.explicit({}, STEPS, guidance=GuidancePlan((1,), order=0))

    def refused(handle: CacheHandle, branch: str, said: str, step: int = 0) -> None:
        with handle.at(step, branch), pytest.raises(PolicyError, match=said):
            made.call(step)
        handle.reset()

    handle = apply_cache(made.model, plan)
    refused(handle, "both", "hidden_states at step 0 is no batch of both")  # two videos
    refused(handle, "negative", "the negative one runs before it at step 0")
    refused(handle, "uncond_stg", "a branch is called 'uncond_stg'")
    with handle.at(0, "positive"):
        made.call(0)
    refused(handle, "positive", "step 1 reuses guidance: none stored", 1)  # guidance is off
    with pytest.raises(PolicyError, match="no branch is told at step 0"):
        made.call(0)


def test_numbers_and_things_whose_rows_are_unknown_are_refused() -> None:
    made = ltx()
    plan = CachePolicy.explicit({}, STEPS, guidance=GuidancePlan((1,), order=0))
    handle = apply_cache(made.model, plan)
    twice = torch.cat([rand(*made.latents, seed=0)] * 2)
    given = {
        "encoder_hidden_states": rand(4, 5, 16, seed=1),
        "encoder_attention_mask": torch.ones(4, 5),
    }
    for more, said in [
        ({"timestep": torch.arange(4)}, "numbers that differ between the branches"),
        ({"attention_kwargs": {"scale": object()}}, "given a object, of which"),
    ]:
        for step in (0, 1):
            call = {"timestep": torch.ones(4), "num_frames": 2, "height": 2, "width": 2, **more}
            run = lambda call=call: made.model(twice, **given, **call, return_dict=False)  # noqa: E731
            with handle.at(step):
                if step == 0:
                    run()
                else:
                    with pytest.raises(PolicyError, match=said):
                        run()
        handle.reset()


GUIDED = {"guidance_scale": 3.0}


@pytest.mark.parametrize("family", ["hunyuan", "ltx", "cogvideox", "mochi"])
def test_whole_pipelines(family: str) -> None:
    """Beside the same pipeline with the negative branch put in by one of torch's hooks."""
    pipe, arguments = FAMILIES[family]()
    driven = DiffusersPipeline(pipe, {**arguments, **({} if family == "hunyuan" else GUIDED)})
    steps, reused = 5, {2, 4}
    policy = CachePolicy.explicit({}, steps, guidance=GuidancePlan(tuple(sorted(reused)), order=0))
    plain = driven.denoise("a red ball", 3, steps).latents
    made = driven.denoise("a red ball", 3, steps, cache=policy).latents
    again = driven.denoise("a red ball", 3, steps, cache=policy).latents

    calls: list[Tensor] = []
    difference = torch.zeros(())
    batched = driven.branches() == 1 or family in ("ltx", "cogvideox", "mochi")

    def put_in(module: Any, args: Any, output: Any) -> Any:
        nonlocal difference
        x = output[0]
        calls.append(x)
        step, second = divmod(len(calls) - 1, 1 if batched else 2)
        if batched:
            negative, positive = x.chunk(2)
        elif not second:
            return None
        else:
            negative, positive = x, calls[-2]
        if step not in reused:
            difference = positive - negative
            return None
        negative = positive - difference
        return (torch.cat([negative, positive]) if batched else negative,)

    hook = pipe.transformer.register_forward_hook(put_in)
    expected = driven.denoise("a red ball", 3, steps).latents
    hook.remove()
    assert torch.equal(made, again)
    assert not torch.allclose(made, plain, rtol=1e-3)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
