"""The transformer against the official code's results, and what our forward adds to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from osp_opt.base.errors import CheckpointError, ShapeError
from osp_opt.model.release import load_transformer
from osp_opt.model.transformer import Layer, OpenSoraT2V, run_blocks

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {
    f["path"]: f
    for f in json.loads((GOLDEN / "index.json").read_text())["files"]
    if f["path"].startswith("transformer/case")
}
FLOAT32 = sorted(p for p in CASES if "bf16" not in p and "official_bug" not in CASES[p])


def inputs_of(path: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    data = load_file(GOLDEN / CASES[path].get("inputs_from", path))
    kept = {key.removeprefix("in."): value for key, value in data.items() if key[:3] == "in."}
    return {
        key: value.to(dtype) if value.is_floating_point() and key != "timestep" else value
        for key, value in kept.items()
    }


def run_recorded(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def recording(layers: Sequence[Layer], x: Tensor) -> Tensor:
        seen["patch_tokens"] = x
        for index, layer in enumerate(layers):
            x = seen[f"block_{index:02d}"] = layer(x)
        return x

    first = model.transformer_blocks[0]
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out}))
        for name, module in {"block_00_attn1": first.attn1, "block_00_attn2": first.attn2}.items()
    ]
    with torch.no_grad():
        seen["output"] = model(**inputs, blocks=recording).sample
    for hook in hooks:
        hook.remove()
    return seen


def assert_equal(found: Tensor, expected: Tensor, name: str = "output") -> None:
    """To 1e-5 of the largest value: another processor adds up in another order."""
    largest = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(
        found, expected, atol=1e-5 * largest, rtol=0, msg=lambda text: f"{name}: {text}"
    )


@pytest.fixture(scope="module")
def model() -> OpenSoraT2V:
    return load_transformer(GOLDEN / "transformer/main")


@pytest.fixture
def inputs() -> dict[str, Tensor]:
    return inputs_of("transformer/case_a_video.safetensors")


@pytest.mark.parametrize("path", FLOAT32)
def test_equals_the_official_code_after_every_block(path: str) -> None:
    model = load_transformer(GOLDEN / CASES[path]["model_dir"])
    expected = load_file(GOLDEN / path)
    seen = run_recorded(model, inputs_of(path))
    compared = [key for key in seen if f"out.{key}" in expected]
    assert {"output", "block_00"} <= set(compared)
    for key in compared:
        assert_equal(seen[key], expected[f"out.{key}"], key)


def test_embeddings_equal_the_official_code(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    expected = load_file(GOLDEN / "transformer/case_a_video.safetensors")
    with torch.no_grad():
        modulation, embedded = model.adaln_single(inputs["timestep"], torch.float32)
        caption = model.caption_projection(inputs["encoder_hidden_states"])
    torch.testing.assert_close(
        modulation.flatten(1), expected["out.adaln_timestep6d"], atol=1e-5, rtol=0
    )
    torch.testing.assert_close(embedded, expected["out.adaln_embedded_timestep"], atol=1e-5, rtol=0)
    torch.testing.assert_close(caption, expected["out.caption_projection"], atol=1e-5, rtol=0)


def test_bfloat16_is_within_kernel_rounding_of_the_official_code() -> None:
    path = "transformer/case_d_bf16.safetensors"
    model = load_transformer(GOLDEN / "transformer/main", torch.bfloat16)
    output = run_recorded(model, inputs_of(path, torch.bfloat16))["output"]
    assert output.dtype == torch.bfloat16
    error = output.float() - load_file(GOLDEN / path)["out.output"].float()
    assert error.abs().max() < 0.06
    assert error.pow(2).mean().sqrt() < 0.01


def test_differs_from_the_official_code_only_by_its_table_bug() -> None:
    """The official table cache forgets the axis: with equal sizes all axes get the t scale."""
    path = next(p for p in CASES if "official_bug" in CASES[p])
    model = load_transformer(GOLDEN / CASES[path]["model_dir"])
    expected = load_file(GOLDEN / path)["out.output"]
    right = run_recorded(model, inputs_of(path))["output"]
    assert (right - expected).abs().max() > 0.1
    scale_t = model.config.interpolation_scale_t
    model.rotary_tables.reset()
    model.rotary_tables.interpolation_scale = (scale_t, scale_t, scale_t)
    wrong = run_recorded(model, inputs_of(path))["output"]
    assert_equal(wrong, expected)


@pytest.mark.parametrize(
    ("frames", "size", "scales"),
    [(8, (60, 80), (0.5, 2.0, 2.0)), (29, (30, 60), (2.0, 1.0, 1.5)), (1, 15, (1.0, 0.5, 0.375))],
)
def test_scales_that_a_config_leaves_open_are_upstreams(
    frames: int, size: int | tuple[int, int], scales: tuple[float, float, float]
) -> None:
    def build(**more: float) -> OpenSoraT2V:
        return OpenSoraT2V(
            num_attention_heads=2,
            attention_head_dim=6,
            num_layers=1,
            caption_channels=8,
            sample_size_t=frames,
            sample_size=size,
            **more,
        )

    t, _, w = scales
    assert build().interpolation_scale == scales
    assert build(interpolation_scale_h=3.0).interpolation_scale == (t, 3.0, w)
    assert build().config.interpolation_scale_t is None


def test_text_context_is_exact_and_trimmed(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    expected = load_file(GOLDEN / "transformer/case_a_video.safetensors")["out.output"]
    embeds, mask = inputs["encoder_hidden_states"], inputs["encoder_attention_mask"]
    with torch.no_grad():
        text = model.encode_text(embeds, mask)
        output = model(inputs["hidden_states"], inputs["timestep"], text=text).sample
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
    longest = int(mask.sum(-1).max())
    assert longest < mask.shape[-1]
    for block in model.transformer_blocks:
        key, value, _ = text.keys_and_values(block.attn2)
        assert key.shape[:2] == value.shape[:2] == (2, longest)
    assert text.mask is not None
    assert text.mask.dtype == torch.bool
    assert text.mask.shape == (2, 1, 1, longest)


def test_padding_content_never_matters(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    mask = inputs["encoder_attention_mask"]
    with torch.no_grad():
        before = model(**inputs).sample
        noise = torch.randn(inputs["encoder_hidden_states"].shape)
        inputs["encoder_hidden_states"] += 10 * noise * (mask == 0)[..., None]
        assert torch.equal(model(**inputs).sample, before)


def test_flat_text_shapes_mean_the_same(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        before = model(**inputs).sample
        flat = {
            key: value.squeeze(1) if key.startswith("encoder") else value
            for key, value in inputs.items()
        }
        (after,) = model(**flat, return_dict=False)
    assert torch.equal(before, after)


def test_all_ones_masks_are_no_masks(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    embeds = inputs["encoder_hidden_states"]
    assert model.encode_text(embeds, torch.ones(2, 12)).mask is None
    assert model.encode_text(embeds).mask is None
    with torch.no_grad():
        with_ones = model(**inputs).sample
        del inputs["attention_mask"]
        assert torch.equal(model(**inputs).sample, with_ones)


def test_a_prompt_of_padding_only_attends_evenly(
    model: OpenSoraT2V, inputs: dict[str, Tensor]
) -> None:
    """-10000 on every key cancels in the softmax: the official code ignores such a mask."""
    inputs["encoder_attention_mask"][1] = 0
    with torch.no_grad():
        masked = model(**inputs).sample[1]
        inputs["encoder_attention_mask"][1] = 1
        torch.testing.assert_close(masked, model(**inputs).sample[1], atol=1e-5, rtol=0)


def test_samples_of_a_batch_do_not_touch(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    with torch.no_grad():
        both = model(**inputs).sample
        alone = model(**{key: value[1:] for key, value in inputs.items()}).sample
    torch.testing.assert_close(both[1:], alone, atol=1e-5, rtol=0)


def test_timesteps_are_not_rounded(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    text = model.encode_text(inputs["encoder_hidden_states"], inputs["encoder_attention_mask"])
    with torch.no_grad():
        low, middle, high = (
            model(inputs["hidden_states"], torch.tensor(t), text=text).sample
            for t in (500.0, 500.5, 501.0)
        )
    assert not torch.equal(middle, low)
    assert not torch.equal(middle, high)


def test_the_block_loop_decides_what_runs(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    skipped: list[int] = []

    def without_second(layers: Sequence[Layer], x: Tensor) -> Tensor:
        skipped.append(len(layers))
        return run_blocks([*layers[:1], *layers[2:]], x)

    shorter = load_transformer(GOLDEN / "transformer/main")
    del shorter.transformer_blocks[1]
    with torch.no_grad():
        expected = shorter(**inputs).sample
        assert torch.equal(model(**inputs, blocks=without_second).sample, expected)
    assert skipped == [4]


def test_every_parameter_learns(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    trained = load_transformer(GOLDEN / "transformer/main").train()
    embeds = inputs["encoder_hidden_states"].requires_grad_()
    trained(**inputs).sample.square().mean().backward()
    # A key bias adds the same to all scores of a query, which the softmax cancels. In
    # self-attention rotation makes it differ by position.
    silent = {
        name
        for name, parameter in trained.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 1e-9
    }
    assert all(name.endswith("attn2.to_k.bias") for name in silent)
    padding = inputs["encoder_attention_mask"] == 0
    assert embeds.grad is not None
    assert embeds.grad[padding].eq(0).all()
    assert embeds.grad[~padding].ne(0).any(-1).all()


def test_gradients_equal_finite_differences() -> None:
    torch.manual_seed(0)
    model = OpenSoraT2V(
        num_attention_heads=2, attention_head_dim=6, num_layers=1, caption_channels=4
    ).double()
    timestep, mask = torch.tensor([321.5]), torch.tensor([[1, 1, 0]])
    latents = torch.randn(1, 4, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    embeds = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)

    def output(latents: Tensor, embeds: Tensor) -> Tensor:
        return model(latents, timestep, embeds, mask).sample

    assert torch.autograd.gradcheck(output, (latents, embeds), atol=1e-6)


def test_training_works_after_inference_mode(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    model.rotary_tables.reset()
    with torch.inference_mode():
        model(**inputs)
    model(**inputs).sample.mean().backward()
    model.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("downsampler", "k333_s222"),
        ("attention_type", "gated"),
        ("double_self_attention", True),
        ("use_additional_conditions", True),
        ("attention_head_dim", 16),
        ("cross_attention_dim", 100),
        ("patch_size_t", 2),
    ],
)
def test_refuses_networks_it_does_not_build(key: str, value: object) -> None:
    with pytest.raises(CheckpointError, match=f"{key}=") as caught:
        OpenSoraT2V(**{"num_layers": 1, "caption_channels": 8, key: value})
    assert "\n" not in str(caught.value)


def test_refuses_wrong_shapes(model: OpenSoraT2V, inputs: dict[str, Tensor]) -> None:
    latents, timestep, embeds = (
        inputs[key] for key in ("hidden_states", "timestep", "encoder_hidden_states")
    )
    with pytest.raises(ShapeError, match="multiples of 2"):
        model(latents[..., :-1], timestep, embeds)
    with pytest.raises(ShapeError, match=r"\[b 4 t h w\]"):
        model(latents[:, :3], timestep, embeds)
    with pytest.raises(ShapeError, match="got neither"):
        model(latents, timestep)
    with pytest.raises(ShapeError, match="token counts"):
        model(latents, timestep, embeds, torch.ones(2, 5))
