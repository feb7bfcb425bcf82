"""A starting point for training the VAE: before its first update it is a thumbnail codec.

Random weights need thousands of updates before a decoder shows more than plain colours. Here every
residual branch starts at zero and every resampling convolution as plain averaging or copying, so
that latents are an 8x8 RGB thumbnail and decoding is its enlargement; training only has to learn
what that loses. SiLU is passed by carrying each colour twice, as x and -x, because
silu(x) - silu(-x) = x; group normalisation (one group) by a constant pair that fixes the variance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from osp_opt.model.vae import blocks
from osp_opt.model.vae.autoencoder import CausalVAEModel

ANCHOR = 6.0  # the constant pair: large beside colours in [-1, 1]
LATENT_GAIN = 1.5
LOGVAR = -4.0  # posterior standard deviation 0.14 on latents of about unit size
COLORS = 3
CARRIED = 2 * COLORS + 2  # channels 0-2 colour, 3-5 its negative, 6 and 7 the anchor


@torch.no_grad()
def start_as_thumbnail(vae: CausalVAEModel, video: Tensor) -> None:
    """Overwrite the weights; ``video [b 3 t h w]`` fits the one output gain.

    The model must have one normalisation group and quant layers.
    """
    for module in vae.modules():
        if isinstance(module, blocks.ResnetBlock3D):
            _zero(module.conv2)
            if hasattr(module, "nin_shortcut"):
                _copy(module.nin_shortcut)
        elif isinstance(module, blocks.AttnBlock3D | blocks.AttnBlock3DFix):
            _zero(module.proj_out)
        elif isinstance(module, blocks.Downsample | blocks.Spatial2xTime2x3DDownsample):
            _average(module.conv)
        elif isinstance(module, blocks.SpatialUpsample2x | blocks.Spatial2xTime2x3DUpsample):
            _copy(module.conv)
    _copy(vae.quant_conv)
    _copy(vae.post_quant_conv)
    _carry(vae.encoder.conv_in)
    _carry(vae.decoder.conv_in)
    _release(vae.encoder.conv_out, LATENT_GAIN)
    moments = _conv(vae.encoder.conv_out)
    half = moments.weight.shape[0] // 2
    moments.weight[half:] = 0
    moments.bias[half:] = LOGVAR
    _release(vae.decoder.conv_out, 1.0)
    decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample
    _conv(vae.decoder.conv_out).weight *= (decoded * video).sum() / decoded.square().sum()


def _conv(module: Any) -> Any:
    conv = module.conv if isinstance(module, blocks.CausalConv3d) else module
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    return conv


def _zero(module: nn.Module) -> None:
    conv = _conv(module)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)


def _centre(conv: Any) -> tuple[int, ...]:
    """The tap that sees the output's own position; in time, causally, the last one."""
    kernel = conv.kernel_size
    return tuple(k - 1 if len(kernel) == 3 and i == 0 else k // 2 for i, k in enumerate(kernel))


def _copy(module: nn.Module) -> None:
    """Channel c of the output is channel c of the input."""
    _zero(module)
    conv = _conv(module)
    for c in range(min(conv.weight.shape[:2])):
        conv.weight[(c, c, *_centre(conv))] = 1.0


def _average(module: nn.Module) -> None:
    """Channel c of the output is the mean over two by two pixels (and the last two frames)."""
    _zero(module)
    conv = _conv(module)
    for c in range(min(conv.weight.shape[:2])):
        tap = conv.weight[c, c]
        tap = tap if tap.ndim == 2 else tap[-2:]
        tap[..., :2, :2] = 1.0 / tap[..., :2, :2].numel()


def _carry(module: nn.Module) -> None:
    """Colours (or latents) in, pairs and anchor out; the channels after them stay random."""
    conv = _conv(module)
    conv.weight[:CARRIED] = 0
    conv.bias[:CARRIED] = 0
    for c in range(COLORS):
        conv.weight[(c, c, *_centre(conv))] = 1.0
        conv.weight[(c + COLORS, c, *_centre(conv))] = -1.0
    conv.bias[2 * COLORS] = ANCHOR
    conv.bias[2 * COLORS + 1] = -ANCHOR


def _release(module: nn.Module, gain: float) -> None:
    """Pairs in, colours out: the difference of the two undoes the SiLU before it."""
    conv = _conv(module)
    conv.weight *= 0.1
    conv.weight[:COLORS] = 0
    nn.init.zeros_(conv.bias)
    for c in range(COLORS):
        conv.weight[(c, c, *_centre(conv))] = gain
        conv.weight[(c, c + COLORS, *_centre(conv))] = -gain
