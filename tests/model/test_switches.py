"""What makes the transformer faster leaves it the official network: golden data, every switch."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from osp_opt.model.release import load_transformer
from osp_opt.model.transformer import OpenSoraT2V

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer"
CASES = ("case_a_video", "case_b_image", "case_c_other_size")
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["three", "fused"])


def golden_inputs(case: str) -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / f"{case}.safetensors")
    return {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("in.")}


def golden_output(case: str) -> Tensor:
    return load_file(GOLDEN / f"{case}.safetensors")["out.output"]


@pytest.fixture
def model(fused: bool) -> OpenSoraT2V:
    loaded = load_transformer(GOLDEN / "main")
    if fused:
        loaded.fuse_qkv_projections()
    return loaded


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@FUSED
@pytest.mark.parametrize("table", [False, True], ids=["timestep", "table"])
@pytest.mark.parametrize("context", [False, True], ids=["embeds", "context"])
@pytest.mark.parametrize("case", CASES)
def test_golden_outputs_hold_with_every_switch(
    model: OpenSoraT2V, case: str, context: bool, table: bool
) -> None:
    """Each sample alone: one row of modulation is another path than a row per sample."""
    inputs, expected = golden_inputs(case), golden_output(case)
    timesteps = inputs.pop("timestep").tolist()
    # Neighbours in the table must not matter.
    rows = model.encode_timesteps([999.0, *timesteps, 0.25])[1:-1]
    for i, timestep in enumerate(timesteps):
        own = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
        embeds = own.pop("encoder_hidden_states"), own.pop("encoder_attention_mask")
        time = rows[i] if table else torch.tensor(timestep)
        if context:
            output = model(**own, timestep=time, text=model.encode_text(*embeds)).sample
        else:
            names = ("encoder_hidden_states", "encoder_attention_mask")
            output = model(**own, timestep=time, **dict(zip(names, embeds, strict=True))).sample
        torch.testing.assert_close(output, expected[i : i + 1], atol=1e-5, rtol=0)


@FUSED
def test_a_row_for_each_sample_holds_too(model: OpenSoraT2V) -> None:
    output = model(**golden_inputs(CASES[0])).sample
    torch.testing.assert_close(output, golden_output(CASES[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("fused", [True])
def test_fusing_changes_neither_parameters_nor_files(model: OpenSoraT2V, tmp_path: Path) -> None:
    plain = load_transformer(GOLDEN / "main")
    assert model.transformer_blocks[0].attn1.fused
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in plain.named_parameters()
    ]
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    expected = plain.state_dict()
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


@pytest.mark.parametrize("fused", [True])
@pytest.mark.parametrize("change", ["cast", "load", "copy", "unfuse"])
def test_fused_weights_follow_their_layers(model: OpenSoraT2V, change: str) -> None:
    """A stale copy of the weights would give the old network's result."""
    other = load_transformer(GOLDEN / "main")
    for parameter in other.parameters():
        parameter.mul_(0.9)
    inputs = golden_inputs(CASES[0])
    expected = other(**inputs).sample
    if change == "load":
        model.load_state_dict(other.state_dict())
    elif change == "copy":
        model = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.mul_(0.9)
    elif change == "cast":
        model.double()
        for parameter in model.parameters():
            parameter.mul_(0.9)
        model.float()
    else:
        model.unfuse_qkv_projections()
        for parameter in model.parameters():
            parameter.mul_(0.9)
    assert model.transformer_blocks[0].attn1.fused == (change != "unfuse")
    torch.testing.assert_close(model(**inputs).sample, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("fused", [True])
def test_fused_weights_take_no_memory_of_their_own(model: OpenSoraT2V) -> None:
    for block in model.transformer_blocks:
        layers = (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
        for kind in ("weight", "bias"):
            parts = [getattr(layer, kind) for layer in layers]
            storages = {part.untyped_storage().data_ptr() for part in parts}
            assert len(storages) == 1
            held = parts[0].untyped_storage().nbytes()
            assert held == sum(part.nbytes for part in parts)
    model.unfuse_qkv_projections()
    attention = model.transformer_blocks[0].attn1
    pointers = {attention.to_q.weight.data_ptr(), attention.to_k.weight.data_ptr()}
    assert len(pointers) == 2
    assert attention.to_k.weight.untyped_storage().nbytes() == attention.to_k.weight.nbytes


@pytest.mark.parametrize("fused", [True])
def test_fused_weights_can_be_trained(model: OpenSoraT2V) -> None:
    with torch.enable_grad():
        model.train()(**golden_inputs(CASES[0])).sample.square().mean().backward()
    for block in model.transformer_blocks:
        assert block.attn1.to_k.weight.grad is not None
        assert block.attn1.to_k.weight.grad.abs().max() > 0


@FUSED
def test_bfloat16_is_within_kernel_rounding(model: OpenSoraT2V) -> None:
    inputs = golden_inputs("case_d_bf16")
    if not inputs:
        index = json.loads((GOLDEN.parent / "index.json").read_text())["files"]
        source = next(f for f in index if f["path"] == "transformer/case_d_bf16.safetensors")
        inputs = golden_inputs(Path(source["inputs_from"]).stem)
    model.bfloat16()
    expected = golden_output("case_d_bf16").float()
    timesteps = inputs.pop("timestep")
    inputs = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in inputs.items()
    }
    for i, row in enumerate(model.encode_timesteps(timesteps.tolist())):
        own = {name: tensor[i : i + 1] for name, tensor in inputs.items()}
        error = model(**own, timestep=row).sample.float() - expected[i : i + 1]
        assert error.abs().max() < 0.06
        assert error.pow(2).mean().sqrt() < 0.01
