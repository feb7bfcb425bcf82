"""apply_cache on transformers of many kinds, and on loops that do more than run their blocks.

Right or refused: each case is compared with plain torch hooks that run every block and put the
stored change in place of what a range made. (By hand, with the dummy configurations of diffusers'
own tests: of 59 transformer classes 49 equal to the bit, 4 refused, none wrong; the others did not
run as configured.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import (
    CogVideoXTransformer3DModel,
    FluxTransformer2DModel,
    LatteTransformer3DModel,
    LTXVideoTransformer3DModel,
    Lumina2Transformer2DModel,
    SD3Transformer2DModel,
    WanVACETransformer3DModel,
)
from torch import Tensor, nn

from osp_opt.base.errors import PolicyError
from osp_opt.cache.hooks import CacheHandle, apply_cache
from osp_opt.cache.policy import CachePolicy

STEPS = 4
Call = Callable[[int], Tensor]
Streams = dict[str, str | None]  # part of the output -> argument, by position in the tuple


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def caller(model: nn.Module, name: str, shape: tuple[int, ...], **fixed: Any) -> Call:
    def call(step: int) -> Tensor:
        time = torch.full((shape[0],), 900 - 100 * step)
        given = {name: rand(*shape, seed=step), "timestep": time}
        return model(**given, **fixed, return_dict=False)[0]

    return call


def sd3() -> Any:
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
        pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    call = caller(
        model, "hidden_states", (1, 4, 8, 8), encoder_hidden_states=rand(1, 5, 16, seed=9),
        pooled_projections=rand(1, 8, seed=8),
    )  # fmt: skip
    # The last block returns no text.
    return model, list(model.transformer_blocks), call, ("encoder_hidden_states", "hidden_states")


def cogvideox() -> Any:
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=8, num_layers=3, sample_width=8, sample_height=8,
        sample_frames=5, patch_size=2, max_text_seq_length=5,
    )  # fmt: skip
    text = rand(1, 5, 8, seed=9)
    call = caller(model, "hidden_states", (1, 2, 4, 8, 8), encoder_hidden_states=text)
    return model, list(model.transformer_blocks), call, ("hidden_states", "encoder_hidden_states")


def ltx() -> Any:
    model = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=3, caption_channels=16,
    )  # fmt: skip
    call = caller(
        model, "hidden_states", (2, 8, 4), encoder_hidden_states=rand(2, 5, 16, seed=9),
        encoder_attention_mask=torch.ones(2, 5), num_frames=2, height=2, width=2,
    )  # fmt: skip
    return model, list(model.transformer_blocks), call, ("hidden_states",)


def lumina2() -> Any:
    """Not registered with diffusers: the list is named."""
    model = Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=3,
        num_refiner_layers=1, num_attention_heads=1, num_kv_heads=1, multiple_of=2,
        axes_dim_rope=(8, 8, 8), axes_lens=(32, 32, 32), cap_feat_dim=16,
    )  # fmt: skip
    call = caller(
        model, "hidden_states", (1, 4, 8, 8), encoder_hidden_states=rand(1, 5, 16, seed=9),
        encoder_attention_mask=torch.ones(1, 5, dtype=torch.bool),
    )  # fmt: skip
    return model, list(model.layers), call, ("hidden_states",)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def by_hand(
    blocks: list[nn.Module], call: Call, start: int, end: int, names: tuple[str, ...]
) -> list[Tensor]:
    """Steps 2 and 3 take the range's change of step 1."""
    entry: dict[str, Tensor] = {}
    change: dict[str, Tensor] = {}
    step = 0

    def before(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        order = [n for n in inspect.signature(type(block).forward).parameters if n != "self"]
        given = {**dict(zip(order, args, strict=False)), **kwargs}
        entry.update({name: given[name].clone() for name in names})

    def after(block: nn.Module, args: object, output: Any) -> Any:
        alone = isinstance(output, Tensor)
        parts = dict(zip(names, (output,) if alone else output, strict=True))
        if step < 2:
            change.update({n: part - entry[n] for n, part in parts.items() if part is not None})
            return None
        new = tuple(None if part is None else entry[n] + change[n] for n, part in parts.items())
        return new[0] if alone else new

    handles = [
        blocks[start].register_forward_pre_hook(before, with_kwargs=True),
        blocks[end - 1].register_forward_hook(after),
    ]
    outputs = []
    for step in range(STEPS):
        outputs.append(call(step))
    for handle in handles:
        handle.remove()
    return outputs


def run(handle: CacheHandle, call: Call) -> list[Tensor]:
    outputs = []
    for step in range(STEPS):
        with handle.at(step):
            outputs.append(call(step))
    return outputs


def policy(start: int, end: int) -> CachePolicy:
    return CachePolicy.explicit({2: [(start, end)], 3: [(start, end)]}, STEPS)


@pytest.mark.parametrize("make", [sd3, cogvideox, ltx, lumina2])
def test_equals_hooks_written_by_hand(make: Callable[[], Any]) -> None:
    model, blocks, call, names = make()
    model.eval()
    named = {"blocks": "transformer.layers"} if make is lumina2 else {}
    plain = [call(step) for step in range(STEPS)]  # an uncached run first
    for start, end in [(0, 1), (0, 2), (1, 3), (2, 3)]:
        expected = by_hand(blocks, call, start, end, names)
        handle = apply_cache(model, policy(start, end), **named)
        got = run(handle, call)
        assert [torch.equal(a, b) for a, b in zip(got, expected, strict=True)] == [True] * STEPS
        assert not torch.equal(got[3], plain[3])
        again = run(handle, call)  # another video: its first step is told, nothing is reset
        assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
        handle.remove()
        assert all(torch.equal(call(step), plain[step]) for step in range(STEPS))
    assert all("forward" not in vars(module) for module in model.modules())


def wan_vace() -> Any:
    model = WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=3, rope_max_seq_len=32, vace_layers=[0, 1],
        vace_in_channels=8,
    )  # fmt: skip
    call = caller(
        model, "hidden_states", (1, 4, 2, 4, 4), encoder_hidden_states=rand(1, 5, 16, seed=9),
        control_hidden_states=rand(1, 8, 2, 4, 4, seed=8),
        control_hidden_states_scale=torch.ones(2),
    )  # fmt: skip
    return model, call, {"blocks": "blocks"}


def flux_with_controlnet() -> Any:
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    call = caller(
        model, "hidden_states", (1, 6, 4), encoder_hidden_states=rand(1, 5, 24, seed=9),
        pooled_projections=rand(1, 8, seed=8), img_ids=torch.zeros(6, 3), txt_ids=torch.zeros(5, 3),
        controlnet_block_samples=[rand(1, 6, 32, seed=i) for i in range(2)],
    )  # fmt: skip
    return model, call, {}


def latte() -> Any:
    model = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=16, attention_bias=True, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, activation_fn="gelu-approximate", norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=16, video_length=2,
    )  # fmt: skip
    text = rand(1, 5, 16, seed=9)
    call = caller(model, "hidden_states", (1, 4, 2, 8, 8), encoder_hidden_states=text)
    return model, call, {}


@pytest.mark.parametrize("make", [wan_vace, flux_with_controlnet, latte])
def test_a_range_with_something_between_its_blocks_is_refused(make: Callable[[], Any]) -> None:
    model, call, named = make()
    model.eval()
    handle = apply_cache(model, policy(0, 2), **named)
    with pytest.raises(PolicyError, match=r"blocks 0\.\.1 cannot be reused as one range"):
        run(handle, call)


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


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("between", [add, add_later, write, keep])
def test_whatever_happens_between_blocks_is_seen(
    between: Callable[..., Tensor], inference: bool
) -> None:
    model = Loop(between)
    handle = apply_cache(model, policy(0, 3), blocks="layers")

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
