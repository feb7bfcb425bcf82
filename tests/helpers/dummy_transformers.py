"""Transformers of diffusers with small random weights, and block reuse by hooks of torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    BriaFiboTransformer2DModel,
    CogVideoXTransformer3DModel,
    CosmosTransformer3DModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    LatteTransformer3DModel,
    LTXVideoTransformer3DModel,
    Lumina2Transformer2DModel,
    SD3Transformer2DModel,
    WanAnimateTransformer3DModel,
    WanTransformer3DModel,
    WanVACETransformer3DModel,
)
from torch import Tensor, nn

STEPS = 4
Call = Callable[[int], Tensor]


def rand(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Dummy:
    """A transformer, its blocks, the streams that they return in order, and what it is given."""

    model: nn.Module
    blocks: list[nn.Module]
    streams: tuple[str, ...]
    latents: tuple[int, ...]
    given: dict[str, Any]
    named: dict[str, str]  # how apply_cache is told the list of blocks
    clock: str = "timestep"  # the argument that takes the time
    time: type[int] | type[float] = int

    def call(self, step: int, **other: Any) -> Tensor:
        """One evaluation; `other` in place of what it is given."""
        given = {"hidden_states": rand(*self.latents, seed=step), **self.given, **other}
        time = torch.full((len(given["hidden_states"]),), self.time(900 - 100 * step))
        return self.model(**{self.clock: time}, **given, return_dict=False)[0]


def dummy(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    streams: tuple[str, ...],
    latents: tuple[int, ...],
    blocks_name: str | None = None,
    **given: Any,
) -> Dummy:
    named = {} if blocks_name is None else {"blocks": blocks_name}
    return Dummy(model.eval(), list(blocks), streams, latents, given, named)


def wan() -> Dummy:
    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=4, rope_max_seq_len=32,
    )  # fmt: skip
    text = rand(1, 5, 16, seed=9)
    return dummy(
        model, model.blocks, ("hidden_states",), (1, 4, 2, 4, 4), encoder_hidden_states=text
    )


def flux(**more: Any) -> Dummy:
    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=2, num_single_layers=3, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=24, pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return dummy(
        model, [*model.transformer_blocks, *model.single_transformer_blocks],
        ("encoder_hidden_states", "hidden_states"), (1, 6, 4),
        encoder_hidden_states=rand(1, 5, 24, seed=9), pooled_projections=rand(1, 8, seed=8),
        img_ids=torch.zeros(6, 3), txt_ids=torch.zeros(5, 3), **more,
    )  # fmt: skip


def flux_with_controlnet() -> Dummy:
    return flux(controlnet_block_samples=[rand(1, 6, 32, seed=i) for i in range(2)])


def sd3() -> Dummy:
    """Its last block returns no text."""
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16,
        pooled_projection_dim=8, out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip
    return dummy(
        model, model.transformer_blocks, ("encoder_hidden_states", "hidden_states"), (1, 4, 8, 8),
        encoder_hidden_states=rand(1, 5, 16, seed=9), pooled_projections=rand(1, 8, seed=8),
    )  # fmt: skip


def cogvideox() -> Dummy:
    torch.manual_seed(0)
    model = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=8, num_layers=3, sample_width=8, sample_height=8,
        sample_frames=5, patch_size=2, max_text_seq_length=5,
    )  # fmt: skip
    return dummy(
        model, model.transformer_blocks, ("hidden_states", "encoder_hidden_states"),
        (1, 2, 4, 8, 8), encoder_hidden_states=rand(1, 5, 8, seed=9),
    )  # fmt: skip


def ltx() -> Dummy:
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, num_layers=3, caption_channels=16,
    )  # fmt: skip
    return dummy(
        model, model.transformer_blocks, ("hidden_states",), (2, 8, 4),
        encoder_hidden_states=rand(2, 5, 16, seed=9), encoder_attention_mask=torch.ones(2, 5),
        num_frames=2, height=2, width=2,
    )  # fmt: skip


def lumina2() -> Dummy:
    """Not registered with diffusers: the list is named."""
    torch.manual_seed(0)
    model = Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=3,
        num_refiner_layers=1, num_attention_heads=1, num_kv_heads=1, multiple_of=2,
        axes_dim_rope=(8, 8, 8), axes_lens=(32, 32, 32), cap_feat_dim=16,
    )  # fmt: skip
    return dummy(
        model, model.layers, ("hidden_states",), (1, 4, 8, 8), "transformer.layers",
        encoder_hidden_states=rand(1, 5, 16, seed=9),
        encoder_attention_mask=torch.ones(1, 5, dtype=torch.bool),
    )  # fmt: skip


def wan_vace() -> Dummy:
    torch.manual_seed(0)
    model = WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=16,
        freq_dim=16, ffn_dim=32, num_layers=3, rope_max_seq_len=32, vace_layers=[0, 1],
        vace_in_channels=8,
    )  # fmt: skip
    return dummy(
        model, model.blocks, ("hidden_states",), (1, 4, 2, 4, 4), "blocks",
        encoder_hidden_states=rand(1, 5, 16, seed=9),
        control_hidden_states=rand(1, 8, 2, 4, 4, seed=8),
        control_hidden_states_scale=torch.ones(2),
    )  # fmt: skip


def latte() -> Dummy:
    torch.manual_seed(0)
    model = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=16, attention_bias=True, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10, activation_fn="gelu-approximate", norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=16, video_length=2,
    )  # fmt: skip
    return dummy(
        model, model.transformer_blocks, ("hidden_states",), (1, 4, 2, 8, 8),
        encoder_hidden_states=rand(1, 5, 16, seed=9),
    )  # fmt: skip


def cosmos() -> Dummy:
    """Without a padding mask, for which it would need torchvision."""
    torch.manual_seed(0)
    model = CosmosTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=12, num_layers=3,
        mlp_ratio=2, text_embed_dim=16, adaln_lora_dim=4, max_size=(4, 16, 16),
        patch_size=(1, 2, 2), concat_padding_mask=False,
    )  # fmt: skip
    return dummy(
        model, model.transformer_blocks, ("hidden_states",), (1, 4, 2, 8, 8), "transformer_blocks",
        encoder_hidden_states=rand(1, 5, 16, seed=9), fps=24,
    )  # fmt: skip


def hunyuan_dit() -> Dummy:
    """Its second half takes up what its first half returned."""
    torch.manual_seed(0)
    model = HunyuanDiT2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8,
        num_attention_heads=2, hidden_size=16, cross_attention_dim=8, cross_attention_dim_t5=8,
        pooled_projection_dim=4, text_len=3, text_len_t5=2, activation_fn="gelu-approximate",
    )  # fmt: skip
    made = dummy(
        model, model.blocks, ("hidden_states",), (1, 4, 8, 8), "blocks",
        encoder_hidden_states=rand(1, 3, 8, seed=9), text_embedding_mask=torch.ones(1, 3),
        encoder_hidden_states_t5=rand(1, 2, 8, seed=8), text_embedding_mask_t5=torch.ones(1, 2),
        image_meta_size=torch.tensor([[64.0, 64, 8, 8, 0, 0]]), style=torch.zeros(1, dtype=int),
        image_rotary_emb=[torch.ones(16, 8), torch.zeros(16, 8)],
    )  # fmt: skip
    made.time = float
    return made


def wan_animate() -> Dummy:
    """A face is added behind some of its blocks."""
    torch.manual_seed(0)
    model = WanAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=12, latent_channels=4,
        out_channels=4, text_dim=16, freq_dim=16, ffn_dim=32, num_layers=4, image_dim=16,
        rope_max_seq_len=32, motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
        motion_encoder_size=16, motion_style_dim=8, motion_dim=4, motion_encoder_dim=8,
        face_encoder_hidden_dim=8, face_encoder_num_heads=2, inject_face_latents_blocks=2,
    )  # fmt: skip
    return dummy(
        model, model.blocks, ("hidden_states",), (1, 12, 21, 4, 4), "blocks",
        encoder_hidden_states=rand(1, 5, 16, seed=9),
        encoder_hidden_states_image=rand(1, 5, 16, seed=8),
        pose_hidden_states=rand(1, 4, 20, 4, 4, seed=7),
        face_pixel_values=rand(1, 3, 77, 16, 16, seed=6),
    )  # fmt: skip


def bria_fibo() -> Dummy:
    """Between its blocks each takes up its own layer of the text."""
    torch.manual_seed(0)
    model = BriaFiboTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=3, num_single_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=24, text_encoder_dim=12,
        axes_dims_rope=[0, 4, 4],
    )  # fmt: skip
    return dummy(
        model, model.transformer_blocks, ("encoder_hidden_states", "hidden_states"), (1, 6, 4),
        "transformer_blocks", encoder_hidden_states=rand(1, 5, 24, seed=9),
        text_encoder_layers=[rand(1, 5, 12, seed=i) for i in range(5)],
        img_ids=torch.zeros(6, 3), txt_ids=torch.zeros(5, 3),
    )  # fmt: skip


def hidream() -> Dummy:
    """Between its blocks each takes up its own layer of the text."""
    torch.manual_seed(0)
    model = HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=4, out_channels=4, num_layers=3, num_single_layers=2,
        attention_head_dim=8, num_attention_heads=2, caption_channels=[8, 4], text_emb_dim=8,
        num_routed_experts=2, num_activated_experts=1, axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8), llama_layers=(0, 1, 2, 3, 4), force_inference_output=True,
    )  # fmt: skip
    made = dummy(
        model, model.double_stream_blocks, ("hidden_states", "encoder_hidden_states"), (1, 4, 8, 8),
        "double_stream_blocks", encoder_hidden_states_t5=rand(1, 3, 8, seed=9),
        encoder_hidden_states_llama3=rand(5, 1, 3, 4, seed=8), pooled_embeds=rand(1, 8, seed=7),
    )  # fmt: skip
    made.clock = "timesteps"
    return made


def by_hand(
    blocks: list[nn.Module], call: Call, start: int, end: int, names: tuple[str, ...]
) -> list[Tensor]:
    """Outputs of all steps, of which 2 and 3 take the range's change of step 1.

    Every block runs. Of a batch, half may run: it takes the second half of a stored change.
    """
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
        new = tuple(
            None if part is None else entry[n] + change[n][-len(part) :]
            for n, part in parts.items()
        )
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
