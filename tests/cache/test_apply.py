"""apply_cache on other diffusers transformers, random weights: Wan (one stream), Flux (two)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from diffusers import FluxTransformer2DModel, WanTransformer3DModel
from torch import Tensor, nn

from osp_opt.base.errors import PolicyError
from osp_opt.cache.hooks import CacheHandle, apply_cache
from osp_opt.cache.policy import CachePolicy

STEPS = 6
Call = Callable[[int], Tensor]


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def wan() -> tuple[nn.Module, list[nn.Module], Call]:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=4,
        rope_max_seq_len=32,
    ).eval()

    def call(step: int) -> Tensor:
        return model(
            hidden_states=rand(1, 4, 2, 4, 4, seed=step),
            timestep=torch.tensor([900.0 - 100 * step]),
            encoder_hidden_states=rand(1, 5, 16, seed=99),
            return_dict=False,
        )[0]

    return model, list(model.blocks), call


def flux() -> tuple[nn.Module, list[nn.Module], Call]:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    ).eval()

    def call(step: int) -> Tensor:
        return model(
            hidden_states=rand(1, 6, 4, seed=step),
            encoder_hidden_states=rand(1, 5, 24, seed=99),
            pooled_projections=rand(1, 8, seed=98),
            timestep=torch.tensor([0.9 - 0.1 * step]),
            img_ids=torch.zeros(6, 3),
            txt_ids=torch.zeros(5, 3),
            return_dict=False,
        )[0]

    return model, [*model.transformer_blocks, *model.single_transformer_blocks], call


@pytest.fixture(params=[wan, flux], ids=["wan", "flux"])
def model(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, list[nn.Module], Call]]:
    with torch.no_grad():
        yield request.param()


def by_hand(blocks: list[nn.Module], call: Call, start: int, end: int, reused: set[int]) -> list:
    """The same policy written independently with plain forward hooks of torch."""
    change: list[Tensor | None] = [None, None]
    state: dict[str, object] = {}

    def streams(args: tuple, kwargs: dict) -> list[Tensor | None]:
        names = ("hidden_states", "encoder_hidden_states")
        found = [kwargs.get(n, args[i] if i < len(args) else None) for i, n in enumerate(names)]
        return found if state["dual"] else [found[0], None]

    def out_streams(output: object) -> list[Tensor | None]:
        return [output[1], output[0]] if isinstance(output, tuple) else [output, None]  # type: ignore[index, list-item]

    def after(module: nn.Module, args: tuple, kwargs: dict, output: object) -> object:
        state["dual"] = isinstance(output, tuple)
        at, index = state["step"], blocks.index(module)
        if index == start:
            state["entry"] = streams(args, kwargs)
        if index == end - 1:
            entry = state["entry"]
            if at in reused:
                new = [None if e is None else e + c for e, c in zip(entry, change, strict=True)]
                return (new[1], new[0]) if state["dual"] else new[0]
            for i, (e, o) in enumerate(zip(entry, out_streams(output), strict=True)):
                change[i] = None if e is None else o - e
        return None

    handles = [b.register_forward_hook(after, with_kwargs=True) for b in blocks[start:end]]
    outputs = []
    for step in range(STEPS):
        state["step"] = step
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


@pytest.mark.parametrize(("start", "count"), [(0, 4), (1, 2), (2, 1)])
def test_equals_an_independent_implementation(
    model: tuple[nn.Module, list[nn.Module], Call], start: int, count: int
) -> None:
    transformer, blocks, call = model
    expected = by_hand(blocks, call, start, start + count, reused={2, 4})
    plain = [call(step) for step in range(STEPS)]
    handle = apply_cache(transformer, CachePolicy.four_field(start, count, 1, 2), num_steps=STEPS)
    got = run(handle, call)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert not torch.equal(got[2], plain[2])
    assert handle.memory_bytes() > 0
    handle.reset()
    assert handle.memory_bytes() == 0
    assert all(torch.equal(a, b) for a, b in zip(run(handle, call), expected, strict=True))
    handle.remove()
    assert all(torch.equal(call(step), plain[step]) for step in range(STEPS))


def test_skipped_blocks_do_not_run(model: tuple[nn.Module, list[nn.Module], Call]) -> None:
    transformer, blocks, call = model
    ran: list[int] = []
    for index, block in enumerate(blocks):
        first = next(child for child in block.children() if isinstance(child, nn.Module))
        first.register_forward_hook(lambda *_, i=index: ran.append(i))
    run(apply_cache(transformer, CachePolicy.four_field(1, 2, 1, 2)), call)
    assert ran.count(0) == STEPS
    assert ran.count(1) == ran.count(2) == STEPS - 2


def test_step_from_a_pipelines_callback_and_branch_from_its_cache_context() -> None:
    transformer, _, call = wan()
    handle = apply_cache(transformer, CachePolicy.four_field(1, 2, 0, 3))
    with torch.no_grad():
        for step in range(3):
            for branch in ("cond", "uncond"):
                with transformer.cache_context(branch):
                    call(step)
            assert handle.on_step_end(None, step, None, {"latents": 1}) == {"latents": 1}
        assert handle.memory_bytes() == 2 * (2 * 2 * 2) * 24 * 4  # branches, tokens, width, float32
        with transformer.cache_context("cond", step_index=3):
            call(3)
        with pytest.raises(PolicyError, match="ran again at step 3, branch 'cond'"):
            call_in_context(transformer, call)


def call_in_context(transformer: nn.Module, call: Call) -> None:
    with transformer.cache_context("cond"):  # type: ignore[operator]
        call(3)


def test_calling_twice_without_telling_the_step_is_an_error() -> None:
    transformer, _, call = wan()
    apply_cache(transformer, CachePolicy.four_field(1, 2, 0, 3))
    with torch.no_grad():
        call(0)
        with pytest.raises(PolicyError, match="tell the step"):
            call(1)


def test_what_cannot_work_is_refused() -> None:
    transformer, _, _ = wan()
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
