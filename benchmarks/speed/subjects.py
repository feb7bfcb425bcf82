"""The models that are measured: the bundled one, a mid-size one and the full-size one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from osp_opt.base.shape import VideoShape
from osp_opt.model.release import load_transformer
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.model.vae.autoencoder import CausalVAEModel
from osp_opt.system.device import Device
from osp_opt.tiny.prompts import BUNDLED

ROPE_L_122 = {
    "num_layers": 32,
    "num_attention_heads": 24,
    "attention_head_dim": 96,
    "caption_channels": 4096,
}
"""OpenSoraT2V-ROPE-L/122, the released transformer: 2.7 billion parameters."""

MID_SIZE = {**ROPE_L_122, "num_layers": 8, "num_attention_heads": 8}
SMALL = {
    "num_layers": 2,
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "caption_channels": 64,
}
"""For running the full-size script from end to end on a CPU."""
SMALL_VAE = {"hidden_size": 32, "hidden_size_mult": [1, 1, 1, 1], "num_res_blocks": 1}

RELEASED_VAE: dict[str, Any] = {
    "hidden_size": 128,
    "hidden_size_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "encoder_conv_in": "Conv2d",
    "encoder_attention": "AttnBlock3DFix",
    "encoder_resnet_blocks": ["ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"],
    "encoder_spatial_downsample": [
        *("Downsample", "Spatial2xTime2x3DDownsample", "Spatial2xTime2x3DDownsample", "")
    ],
    "encoder_temporal_downsample": ["", "", "", ""],
    "decoder_attention": "AttnBlock3DFix",
    "decoder_resnet_blocks": ["ResnetBlock3D"] * 4,
    "decoder_spatial_upsample": [
        *("", "SpatialUpsample2x", "Spatial2xTime2x3DUpsample", "Spatial2xTime2x3DUpsample")
    ],
    "decoder_temporal_upsample": ["", "", "", ""],
}
"""Structure of the released 4x8x8 autoencoder (D4) at its full width."""


@dataclass(frozen=True)
class Prompts:
    """Random text encoder output of negative then positive prompts, and the mask."""

    embeds: Tensor  # [2 l c]
    mask: Tensor  # [2 l]

    @property
    def longest(self) -> int:
        """Tokens of the longer prompt: what cross-attention sees of it."""
        return int(self.mask.sum(-1).max())


@dataclass(frozen=True)
class Subject:
    """A transformer with prompts, and the video it is measured on."""

    name: str
    model: OpenSoraT2V
    prompts: Prompts
    shape: VideoShape

    def latents(self, seed: int = 0) -> Tensor:
        """Unit normal ``[1 c t h w]``, float32."""
        generator = torch.Generator().manual_seed(seed)
        size = (1, *self.shape.latent_tensor(int(self.model.config["in_channels"])))
        return torch.randn(size, generator=generator).to(self.model.device)


def random_transformer(config: dict[str, Any], shape: VideoShape, device: Device) -> OpenSoraT2V:
    """A transformer of this structure made on the device itself, with small random weights."""
    t, h, w = shape.latent()
    width = config["num_attention_heads"] * config["attention_head_dim"]
    with torch.device("meta"):
        model = OpenSoraT2V(
            **config, cross_attention_dim=width, sample_size_t=t, sample_size=(h, w)
        )
    model = nn.Module.to(model, device.dtype).to_empty(device=device.torch_device)
    return _initialised(model, device)


def random_vae(config: dict[str, Any], device: Device) -> CausalVAEModel:
    """An autoencoder of this structure with small random weights."""
    with torch.device("meta"):
        model = CausalVAEModel(**config)
    model = nn.Module.to(model, device.dtype).to_empty(device=device.torch_device)
    return _initialised(model, device)


def _initialised(model: Any, device: Device) -> Any:
    device.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            # As torch's own layers begin: 1/sqrt(inputs), so that activations stay near one.
            inputs = parameter[0].numel() if parameter.ndim > 1 else parameter.numel()
            parameter.normal_(std=max(inputs, 1) ** -0.5)
    return model.requires_grad_(False).eval()


def random_prompts(channels: int, real: int, padded: int, device: Device) -> Prompts:
    """A positive prompt of ``real`` tokens and a negative one of half of them, padded."""
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(2, padded, channels, generator=generator)
    lengths = torch.tensor([[max(real // 2, 1)], [real]])
    mask = (torch.arange(padded) < lengths).long()
    return Prompts(embeds.to(device.torch_device, device.dtype), mask.to(device.torch_device))


def bundled(device: Device) -> Subject:
    """The model inside the package, with the video and prompt length of its defaults."""
    model = load_transformer(BUNDLED / "transformer", device.dtype).requires_grad_(False)
    model.to(device.torch_device)
    defaults = json.loads((BUNDLED / "defaults.json").read_text())
    shape = VideoShape(defaults["num_frames"], defaults["height"], defaults["width"])
    length = int(defaults["max_sequence_length"])
    prompts = random_prompts(int(model.config["caption_channels"]), length // 2, length, device)
    return Subject("bundled model", model, prompts, shape)


def mid_size(device: Device) -> Subject:
    """8 layers of 8 heads x 96 on 29x256x256, prompts of 64 tokens padded to 512."""
    shape = VideoShape(29, 256, 256)
    model = random_transformer(MID_SIZE, shape, device)
    prompts = random_prompts(int(MID_SIZE["caption_channels"]), 64, 512, device)
    return Subject("mid-size model", model, prompts, shape)
