"""Whatever is done to a layer of a loaded model does what it does to a model of separate layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from osp_opt.model.release import load_transformer
from osp_opt.model.transformer import OpenSoraT2V

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer" / "main"
Change = Callable[[OpenSoraT2V], object]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def fused_model() -> OpenSoraT2V:
    model = load_transformer(GOLDEN)
    model.fuse_qkv_projections()
    return model


def output(model: OpenSoraT2V) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 2, 4, 6, generator=draw)
    return model(latents, torch.tensor(500.5), torch.randn(2, 5, 32, generator=draw)).sample


def layers(model: OpenSoraT2V) -> list[tuple[nn.Module, str, nn.Module]]:
    """Projections of self- and cross-attention, and norms: (parent, name, layer)."""
    found = []
    for block in model.transformer_blocks:
        found += [(block.attn1, name, getattr(block.attn1, name)) for name in ("to_q", "to_v")]
        found += [(block.attn2, "to_k", block.attn2.to_k), (block, "norm1", block.norm1)]
    return found


def hook(model: OpenSoraT2V) -> None:
    for _, _, layer in layers(model):
        layer.register_forward_hook(lambda _module, _args, result: 1.5 * result)


def hook_before(model: OpenSoraT2V) -> None:
    for _, _, layer in layers(model):
        layer.register_forward_pre_hook(lambda _module, args: (1.5 * args[0],))


class Scaled(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * self.layer(x)


def replace(model: OpenSoraT2V) -> None:
    for parent, name, layer in layers(model):
        setattr(parent, name, Scaled(layer))


def replace_attention(model: OpenSoraT2V) -> None:
    torch.manual_seed(3)
    for block in model.transformer_blocks[1:]:
        block.attn2 = copy.deepcopy(block.attn2)
        block.attn2.to_k.weight.mul_(1.5)


def replace_forward(model: OpenSoraT2V) -> None:
    for _, _, layer in layers(model):
        layer.forward = lambda x, old=layer.forward: 1.5 * old(x)


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrize_weights(model: OpenSoraT2V) -> None:
    for _, name, layer in layers(model):
        if name != "norm1":
            parametrize.register_parametrization(layer, "weight", Twice())


def prune_weights(model: OpenSoraT2V) -> None:
    for _, name, layer in layers(model):
        if name != "norm1":
            prune.l1_unstructured(layer, "weight", 0.3)


def change_in_place(model: OpenSoraT2V) -> None:
    model.transformer_blocks[0].attn1.to_k.weight.mul_(1.5)


def other_data(model: OpenSoraT2V) -> None:
    layer = model.transformer_blocks[0].attn1.to_k
    layer.weight.data = layer.weight.data * 1.5


def other_parameter(model: OpenSoraT2V) -> None:
    layer = model.transformer_blocks[0].attn1.to_k
    layer.weight = nn.Parameter(layer.weight * 1.5)


def of_another_fused_model(model: OpenSoraT2V) -> None:
    """Its memory looks like ours: the same places, in another memory."""
    other = fused_model() if model.transformer_blocks[0].attn1.fused else load_transformer(GOLDEN)
    other.transformer_blocks[0].attn1.to_k.weight.mul_(1.5)
    model.transformer_blocks[0].attn1.to_k = other.transformer_blocks[0].attn1.to_k


def without_bias(model: OpenSoraT2V) -> None:
    model.transformer_blocks[0].attn1.to_k.bias = None


def move_one_layer(model: OpenSoraT2V) -> None:
    """As block-wise offloading does: every parameter gets other memory, without a word."""
    for parameter in model.transformer_blocks[0].parameters():
        parameter.data = parameter.data.clone()
    model.transformer_blocks[0].attn1.to_k.weight.mul_(1.5)


def cast_layers(model: OpenSoraT2V) -> None:
    apply_layerwise_casting(model, storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


def reorder_blocks(model: OpenSoraT2V) -> None:
    first, second, *rest = model.transformer_blocks
    model.transformer_blocks = nn.ModuleList([second, first, *rest[1:]])


CHANGES = [
    hook,
    hook_before,
    replace,
    replace_attention,
    replace_forward,
    parametrize_weights,
    prune_weights,
    change_in_place,
    other_data,
    other_parameter,
    of_another_fused_model,
    without_bias,
    move_one_layer,
    cast_layers,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_means_the_same_to_a_fused_model(change: Change) -> None:
    separate, fused = load_transformer(GOLDEN), fused_model()
    before = output(fused)
    change(separate)
    change(fused)
    expected = output(separate)
    torch.testing.assert_close(output(fused), expected, atol=2e-6, rtol=0)
    assert (expected - before).abs().max() > 1e-3  # the change is one


def test_a_hook_that_is_removed_lets_the_layers_be_one_product_again() -> None:
    model = fused_model()
    attention = model.transformer_blocks[0].attn1
    handle = attention.to_q.register_forward_hook(lambda *_: None)
    assert not attention.fused
    handle.remove()
    assert attention.fused


def test_blocks_find_their_own_text_in_any_order() -> None:
    """Against the same weights moved between the blocks instead."""
    model, moved = load_transformer(GOLDEN), load_transformer(GOLDEN)
    reorder_blocks(model)
    moved.load_state_dict(
        {name: tensor.clone() for name, tensor in model.state_dict().items()}, strict=False
    )
    moved.transformer_blocks = moved.transformer_blocks[: len(model.transformer_blocks)]
    assert torch.equal(output(model), output(moved))


def test_cast_layers_hold_no_second_copy() -> None:
    model = fused_model()
    cast_layers(model)
    for block in model.transformer_blocks:
        for layer in (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v):
            assert layer.weight.dtype == torch.bfloat16
            assert layer.weight.untyped_storage().nbytes() == layer.weight.nbytes


def test_gradients_reach_the_layers_in_evaluation_too() -> None:
    separate, fused = load_transformer(GOLDEN), fused_model()
    with torch.enable_grad():
        for model in (separate, fused):
            output(model).square().mean().backward()
    for a, b in zip(separate.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-4)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    plain, checkpointed = fused_model().train(), fused_model().train()
    checkpointed.enable_gradient_checkpointing()
    with torch.enable_grad():
        for model in (plain, checkpointed):
            output(model).square().mean().backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


class TestAdapters:
    """A real LoRA of PEFT on the attention's projections."""

    @pytest.fixture(autouse=True)
    def needs_peft(self) -> None:
        pytest.importorskip("peft")

    @staticmethod
    def add(model: OpenSoraT2V) -> None:
        from peft import LoraConfig

        torch.manual_seed(7)
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["to_q", "to_k", "to_v"])
        config.init_lora_weights = "gaussian"
        model.add_adapter(config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()

    def test_a_lora_means_the_same_before_and_after_loading(self) -> None:
        separate, fused, early = load_transformer(GOLDEN), fused_model(), load_transformer(GOLDEN)
        before = output(fused)
        self.add(separate)
        self.add(fused)
        self.add(early)
        early.fuse_qkv_projections()
        expected = output(separate)
        assert (expected - before).abs().max() > 1e-3
        assert torch.equal(output(fused), expected)
        assert torch.equal(output(early), expected)

    def test_fused_unfused_and_removed(self) -> None:
        separate, fused = load_transformer(GOLDEN), fused_model()
        before = output(fused)
        for model in (separate, fused):
            self.add(model)
            model.fuse_lora()
        torch.testing.assert_close(output(fused), output(separate), atol=2e-6, rtol=0)
        for model in (separate, fused):
            model.unfuse_lora()
        torch.testing.assert_close(output(fused), output(separate), atol=2e-6, rtol=0)
        fused.unload_lora()
        torch.testing.assert_close(output(fused), before, atol=1e-5, rtol=0)

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        made, loaded = fused_model(), fused_model()
        self.add(made)
        made.save_lora_adapter(str(tmp_path))
        loaded.load_lora_adapter(str(tmp_path), prefix=None, use_safetensors=True)
        assert torch.equal(output(loaded), output(made))
