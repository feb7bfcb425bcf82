"""apply_cache on transformers of many kinds, and on loops that do more than run their blocks.

Right or refused: each case is compared with plain torch hooks that run every block and put the
stored change in place of what a range made. (By hand, with the dummy configurations of diffusers'
own tests, some with more blocks: of 59 transformer classes 53 equal to the bit in every range that
is not refused, 6 refused, none wrong.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from helpers.dummy_transformers import (
    STEPS,
    Call,
    Dummy,
    bria_fibo,
    by_hand,
    cogvideox,
    cosmos,
    flux,
    flux_with_controlnet,
    hidream,
    hunyuan_dit,
    latte,
    ltx,
    lumina2,
    rand,
    sd3,
    wan,
    wan_animate,
    wan_vace,
)
from osp_opt.base.errors import PolicyError
from osp_opt.cache.hooks import CacheHandle, apply_cache
from osp_opt.cache.policy import CachePolicy


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def run(handle: CacheHandle, call: Call) -> list[Tensor]:
    outputs = []
    for step in range(STEPS):
        with handle.at(step):
            outputs.append(call(step))
    return outputs


def policy(start: int, end: int) -> CachePolicy:
    return CachePolicy.explicit({2: [(start, end)], 3: [(start, end)]}, STEPS)


@pytest.mark.parametrize("make", [wan, flux, sd3, cogvideox, ltx, lumina2, cosmos])
def test_equals_hooks_written_by_hand(make: Callable[[], Dummy]) -> None:
    made = make()
    plain = [made.call(step) for step in range(STEPS)]  # an uncached run first
    for start, end in [(0, 1), (0, 2), (1, 3), (2, 3)]:
        expected = by_hand(made.blocks, made.call, start, end, made.streams)
        handle = apply_cache(made.model, policy(start, end), **made.named)
        got = run(handle, made.call)
        assert [torch.equal(a, b) for a, b in zip(got, expected, strict=True)] == [True] * STEPS
        assert not torch.equal(got[3], plain[3])
        again = run(handle, made.call)  # another video: its first step is told, nothing is reset
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
        assert handle.memory_bytes() == 0  # the last step that asked for it has passed
        handle.remove()
        assert all(torch.equal(made.call(step), plain[step]) for step in range(STEPS))
    assert all("forward" not in vars(module) for module in made.model.modules())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("make", [wan, flux, sd3, cogvideox])
def test_a_step_tells_what_will_be_held(
    make: Callable[[], Dummy], dtype: torch.dtype | None
) -> None:
    made = make()
    policies = [
        CachePolicy.explicit({3: [(0, 1), (2, 3)]}, STEPS, order=1),  # two changes of each range
        CachePolicy.explicit({2: [(0, 1)], 3: [(0, 2)]}, STEPS),
        CachePolicy.four_field(1, 2, 1, 2),
    ]
    for each in policies:
        handle = apply_cache(made.model, each, dtype=dtype, **made.named)
        with pytest.raises(PolicyError, match="run one before you ask"):
            handle.bytes_needed()
        told, held = [], []
        for step in range(STEPS):
            with handle.at(step):
                made.call(step)
            told.append(handle.bytes_needed())
            held.append(handle.memory_bytes())
        assert set(told) == {max(held)}
        assert told[0] > held[0]  # before it is so
        handle.remove()


@pytest.mark.parametrize(
    "make", [wan_vace, flux_with_controlnet, latte, wan_animate, bria_fibo, hidream]
)
def test_a_range_with_something_between_its_blocks_is_refused(make: Callable[[], Dummy]) -> None:
    made = make()
    handle = apply_cache(made.model, policy(0, 2), **made.named)
    with pytest.raises(PolicyError, match=r"blocks 0\.\.1 cannot be reused as one range"):
        run(handle, made.call)


def test_what_a_model_keeps_of_any_block_in_a_range_is_seen() -> None:
    """Also of the last but one of its blocks: HunyuanDiT takes up what block 0 returned at its end.

    Behind the last block nobody can look: such a range is refused where anything else is kept.
    """
    made = hunyuan_dit()
    for start, end in [(0, 1), (1, 2), (1, 3), (3, 4)]:
        expected = by_hand(made.blocks, made.call, start, end, made.streams)
        handle = apply_cache(made.model, policy(start, end), **made.named)
        got = run(handle, made.call)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        handle.remove()
    for start, end in [(0, 2), (0, 3), (2, 4)]:
        handle = apply_cache(made.model, policy(start, end), **made.named)
        with pytest.raises(PolicyError, match="cannot be reused as one range"):
            run(handle, made.call)
        handle.remove()


class Loop(nn.Module):
    """Three blocks, and `between` them."""

    def __init__(self, between: Callable[[int, Tensor, list[Tensor]], Tensor]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.between = between
        self.step = 0

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for layer in self.layers:
            x = self.between(self.step, layer(x), kept)
        return x + sum(kept)


def add(step: int, x: Tensor, kept: list[Tensor]) -> Tensor:
    return x + 1


def add_later(step: int, x: Tensor, kept: list[Tensor]) -> Tensor:
    return x + 1 if step == 3 else x


def write(step: int, x: Tensor, kept: list[Tensor]) -> Tensor:
    x[:, 1:] += 1
    return x


def keep(step: int, x: Tensor, kept: list[Tensor]) -> Tensor:
    kept.append(x)
    return x


@pytest.mark.parametrize("blocks", [(0, 3), (0, 2), (1, 3), (2, 4), (0, 4)])
@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("between", [add, add_later, write, keep])
def test_whatever_happens_between_blocks_is_seen(
    between: Callable[..., Tensor], inference: bool, blocks: tuple[int, int]
) -> None:
    model = Loop(between)
    handle = apply_cache(model, policy(*blocks), blocks="layers")

    def call(step: int) -> Tensor:
        model.step = step
        return model(rand(2, 4, seed=step))

    with (
        torch.inference_mode() if inference else nullcontext(),
        pytest.raises(PolicyError, match="cannot be reused as one range"),
    ):
        run(handle, call)


def test_with_gradients_nothing_shows_what_is_kept() -> None:
    model = Loop(keep)
    handle = apply_cache(model, policy(0, 3), blocks="layers")
    with torch.enable_grad(), pytest.raises(PolicyError, match=r"torch\.no_grad"):
        run(handle, lambda step: model(rand(2, 4, seed=step)))


def test_a_plain_loop_of_unknown_blocks_is_exact() -> None:
    model = Loop(lambda step, x, kept: x)
    call: Call = lambda step: model(rand(2, 4, seed=step))  # noqa: E731
    expected = by_hand_positional(model, call)
    got = run(apply_cache(model, policy(0, 3), blocks="layers"), call)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def by_hand_positional(model: Loop, call: Call) -> list[Tensor]:
    change: Tensor = torch.zeros(())
    outputs = []
    for step in range(STEPS):
        x = rand(2, 4, seed=step)
        y = x
        for layer in model.layers[:3]:
            y = layer(y)
        if step < 2:
            change = y - x
        else:
            y = x + change
        outputs.append(model.layers[3](y))
    return outputs


def test_a_batch_of_another_size_is_refused() -> None:
    model = Loop(lambda step, x, kept: x)
    handle = apply_cache(model, policy(0, 2), blocks="layers")
    for step in (0, 1):
        with handle.at(step):
            model(rand(2, 4, seed=step))
    with handle.at(2), pytest.raises(PolicyError, match="changed shape"):
        model(rand(1, 4, seed=2))


class Pipe:
    num_timesteps = STEPS


def test_the_next_video_begins_by_itself_and_a_broken_off_one_is_noticed() -> None:
    model = Loop(lambda step, x, kept: x)
    handle = apply_cache(model, CachePolicy.four_field(0, 2, 1, 2), blocks="layers")

    def video(steps: int) -> list[Tensor]:
        made = []
        for step in range(steps):
            made.append(model(rand(2, 4, seed=step)))
            handle.on_step_end(Pipe(), step, 0, {})
        return made

    first = video(STEPS)
    assert handle.memory_bytes() == 0
    assert all(torch.equal(a, b) for a, b in zip(video(STEPS), first, strict=True))
    video(2)
    with pytest.raises(PolicyError, match="broken off"):
        video(STEPS)
    handle.reset()
    assert all(torch.equal(a, b) for a, b in zip(video(STEPS), first, strict=True))


def test_lists_are_named_from_a_pipeline_or_refused() -> None:
    model = Loop(lambda step, x, kept: x)

    class Whole:
        transformer = model

    apply_cache(Whole(), policy(0, 2), blocks="transformer.layers").remove()
    for wrong in ("transformer.blocks", "step", "layers.0"):
        with pytest.raises(PolicyError, match="names no list of blocks"):
            apply_cache(model, policy(0, 2), blocks=wrong)
    with pytest.raises(PolicyError, match="name them with blocks=, it has layers"):
        apply_cache(model, policy(0, 2))
