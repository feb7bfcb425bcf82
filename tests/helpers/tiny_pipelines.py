"""Tiny text-to-video pipelines of diffusers' classes with random weights (CPU, seconds)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    MT5EncoderModel,
    T5Tokenizer,
)

TEXT = Path(__file__).parents[1] / "golden" / "pipeline" / "text_encoder"
WIDTH = 32  # of the golden text encoder
VOCABULARY = 648
SIZE = {"height": 16, "width": 16, "num_frames": 5}


def text_parts() -> dict[str, Any]:
    return {
        "tokenizer": T5Tokenizer.from_pretrained(TEXT),
        "text_encoder": MT5EncoderModel.from_pretrained(TEXT).eval(),
    }


def _seeded() -> None:
    torch.manual_seed(0)


def _lively(model: Any) -> Any:
    """Random weights that no zero initialisation switches off."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def wan_transformer() -> Any:
    return _lively(
        WanTransformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=16,
            out_channels=16, text_dim=WIDTH, freq_dim=16, ffn_dim=32, num_layers=2,
            cross_attn_norm=True, qk_norm="rms_norm_across_heads", rope_max_seq_len=32,
        )
    )  # fmt: skip


def wan(scheduler: Any = None, *, experts: int = 1) -> tuple[Any, dict[str, Any]]:
    _seeded()
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        temperal_downsample=[False, True, True],
    )  # fmt: skip
    pipe = WanPipeline(
        **text_parts(),
        vae=vae.eval(),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=3.0),
        transformer=wan_transformer(),
        transformer_2=wan_transformer() if experts == 2 else None,
        boundary_ratio=0.875 if experts == 2 else None,
    )
    return pipe, {**SIZE, "max_sequence_length": 16}


def ltx(scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    _seeded()
    transformer = LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=2,
        attention_head_dim=8, cross_attention_dim=16, num_layers=2, caption_channels=WIDTH,
    )  # fmt: skip
    vae = AutoencoderKLLTXVideo(
        in_channels=3, out_channels=3, latent_channels=8, block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False), upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False, patch_size=1, patch_size_t=1, encoder_causal=True,
        decoder_causal=False,
    )  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    own = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=0.1)
    pipe = LTXPipeline(
        **text_parts(), vae=vae.eval(), scheduler=scheduler or own, transformer=_lively(transformer)
    )
    return pipe, {**SIZE, "num_frames": 9, "height": 32, "width": 32, "max_sequence_length": 16}


def cogvideox(scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    _seeded()
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=WIDTH, num_layers=2, sample_width=2, sample_height=2,
        sample_frames=5, patch_size=2, temporal_compression_ratio=4, max_text_seq_length=16,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 8, 8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        layers_per_block=1, norm_num_groups=2, temporal_compression_ratio=4,
    )  # fmt: skip
    own = CogVideoXDDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", set_alpha_to_one=True,
        snr_shift_scale=3.0, timestep_spacing="trailing", prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
    )  # fmt: skip
    pipe = CogVideoXPipeline(
        **text_parts(), vae=vae.eval(), scheduler=scheduler or own, transformer=_lively(transformer)
    )
    return pipe, {**SIZE, "max_sequence_length": 16}


def hunyuan(scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    _seeded()
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1,
        num_single_layers=1, num_refiner_layers=1, patch_size=1, patch_size_t=1,
        guidance_embeds=True, text_embed_dim=16, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    vae = AutoencoderKLHunyuanVideo(
        in_channels=3, out_channels=3, latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8),
        layers_per_block=1, act_fn="silu", norm_num_groups=4, scaling_factor=0.476986,
        spatial_compression_ratio=8, temporal_compression_ratio=4, mid_block_add_attention=True,
    )  # fmt: skip
    llama = LlamaModel(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, pad_token_id=0,
        )
    )  # fmt: skip
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=VOCABULARY, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=2, projection_dim=8, eos_token_id=1, pad_token_id=0,
        )
    )  # fmt: skip
    tokenizer = T5Tokenizer.from_pretrained(TEXT)
    pipe = HunyuanVideoPipeline(
        text_encoder=llama.eval(), tokenizer=tokenizer, transformer=_lively(transformer),
        vae=vae.eval(), scheduler=scheduler or FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=clip.eval(), tokenizer_2=tokenizer,
    )  # fmt: skip
    template = {"template": "{}", "crop_start": 0}
    own = {"prompt_template": template, "negative_prompt": "", "true_cfg_scale": 2.0}
    return pipe, {**SIZE, "max_sequence_length": 16, **own}


def mochi(scheduler: Any = None) -> tuple[Any, dict[str, Any]]:
    _seeded()
    transformer = MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2,
        pooled_projection_dim=16, in_channels=12, out_channels=None, qk_norm="rms_norm",
        text_embed_dim=WIDTH, time_embed_dim=4, activation_fn="swiglu", max_sequence_length=16,
    )  # fmt: skip
    vae = AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    pipe = MochiPipeline(
        **text_parts(),
        vae=vae.eval(),
        scheduler=scheduler or FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        transformer=_lively(transformer),
    )
    return pipe, {**SIZE, "num_frames": 7, "max_sequence_length": 16}


FAMILIES = {"wan": wan, "ltx": ltx, "cogvideox": cogvideox, "hunyuan": hunyuan, "mochi": mochi}
