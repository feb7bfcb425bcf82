"""First stage of training the bundled model: the causal video VAE on procedural clips.

``python -m tools.train_tiny vae --out DIR`` (about half an hour on two CPU cores).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from osp_opt.base.artifacts import atomic_path
from osp_opt.model.vae.autoencoder import VAE_SCALE, CausalVAEModel
from osp_opt.tiny.specs import ClipSpec
from tools.train_tiny.clips import ClipGeometry, draw_geometry, render
from tools.train_tiny.optim import MuonWithAdamW, WeightAverage, warm_then_linear
from tools.train_tiny.prompts import all_specs
from tools.train_tiny.thumbnail import start_as_thumbnail

RESNET_2D, RESNET_3D = "ResnetBlock2D", "ResnetBlock3D"
# The released structure (4x8x8, attention in the middle), narrow; the two large levels of the
# decoder work frame by frame, which costs a third and loses nothing on these clips.
VAE_CONFIG = {
    "hidden_size": 32,
    "hidden_size_mult": [1, 1, 2, 2],
    "num_res_blocks": 1,
    "norm_num_groups": 1,
    "encoder_conv_in": "Conv2d",
    "encoder_attention": "AttnBlock3DFix",
    "decoder_attention": "AttnBlock3DFix",
    "encoder_resnet_blocks": [RESNET_2D, RESNET_2D, RESNET_3D, RESNET_3D],
    "decoder_resnet_blocks": [RESNET_2D, RESNET_2D, RESNET_3D, RESNET_3D],
    "encoder_spatial_downsample": [
        "Downsample",
        "Spatial2xTime2x3DDownsample",
        "Spatial2xTime2x3DDownsample",
        "",
    ],
    "encoder_temporal_downsample": [""] * 4,
    "decoder_spatial_upsample": [
        "",
        "SpatialUpsample2x",
        "Spatial2xTime2x3DUpsample",
        "Spatial2xTime2x3DUpsample",
    ],
    "decoder_temporal_upsample": [""] * 4,
}
# Weight of the KL term per latent element, beside the pixel error: enough to
# make the latents smooth (the diffusion model sees noise on them), too little to blur.
KL_WEIGHT = 6e-4
# Weight of the mean absolute error beside the mean squared one; it sharpens edges late in training.
L1_WEIGHT = 0.2
LEARNING_RATE = 1e-3


# Updates, clips per update, frames per clip. Single frames show the most colours and shapes per
# second of training; group normalisation gathers over time, so the end must see the real length.
PHASES = ((400, 32, 1), (400, 8, 5), (120, 2, 29))


def train_vae(
    out: Path, seed: int = 0, phases: Sequence[tuple[int, int, int]] = PHASES, log_every: int = 25
) -> CausalVAEModel:
    """Train from scratch and save to ``out`` (a diffusers folder, float16)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    specs = all_specs()
    vae = CausalVAEModel.from_config(VAE_CONFIG).train()
    start_as_thumbnail(vae, _clips(specs, rng, 8, 9))
    optimiser = MuonWithAdamW(vae, LEARNING_RATE, adamw=("encoder.conv_in", "decoder.conv_out"))
    average = WeightAverage(vae, decay=0.98)
    plan = [(batch, frames) for steps, batch, frames in phases for _ in range(steps)]
    start, sums = time.monotonic(), np.zeros(3)
    for step, (batch, frames) in enumerate(plan):
        loss, *parts = _loss(vae, _clips(specs, rng, batch, frames))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step(warm_then_linear(step, len(plan)))
        average.update(vae)
        sums += parts
        if (step + 1) % log_every == 0:
            square, error, kl = sums / log_every
            minutes = (time.monotonic() - start) / 60
            print(
                f"vae step {step + 1}/{len(plan)}, {batch} x {frames} frames: mse {square:.4f}, "
                f"absolute {error:.4f}, KL {kl:.2f} nats per latent, {minutes:.1f} min",
                flush=True,
            )
            sums[:] = 0
            with atomic_path(out.parent / "vae_training.pt") as path:
                torch.save(average.shadow, path)
    average.copy_to(vae)
    vae.eval()
    normalise_latents(vae, specs, rng)
    vae.half().save_pretrained(out)
    return vae.float()


def _clips(specs: Sequence[ClipSpec], rng: np.random.Generator, batch: int, frames: int) -> Tensor:
    """``[b 3 frames 64 64]``: random cuts from random clips."""
    chosen = [specs[i] for i in rng.integers(len(specs), size=batch)]
    geometry = draw_geometry(chosen, rng, jitter=math.inf)  # shapes anywhere in the frame
    first = int(rng.integers(geometry.centers.shape[1] - frames + 1))
    cut = ClipGeometry(geometry.centers[:, first : first + frames], geometry.radius)
    return render(chosen, cut)


def _loss(vae: CausalVAEModel, video: Tensor) -> tuple[Tensor, float, float, float]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = vae.encode(video).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        latents = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        decoded = vae.decode(latents).sample
    difference = decoded.float() - video
    error = difference.abs().mean()
    # The square is what finds the shape: with the absolute error alone the median, which is plain
    # background, is a resting place that training does not leave.
    square = difference.square().mean()
    pixels = square + L1_WEIGHT * error
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return pixels + KL_WEIGHT * kl, square.item(), error.item(), kl.item()


@torch.no_grad()
def normalise_latents(
    vae: CausalVAEModel, specs: Sequence[ClipSpec], rng: np.random.Generator
) -> None:
    """Fold a shift and a scale into the 1x1x1 convolutions around the latents.

    Afterwards every latent channel times ``VAE_SCALE`` has mean 0 and standard deviation 1 over
    the clips, which is what a variance-preserving diffusion model expects.
    """
    means = torch.cat([vae.encode(_clips(specs, rng, 2, 29)).latent_dist.mean for _ in range(48)])
    shift = means.mean((0, 2, 3, 4))
    scale = 1 / (VAE_SCALE * means.std((0, 2, 3, 4)))
    channels = shift.numel()
    inward: Any = vae.quant_conv.conv
    outward: Any = vae.post_quant_conv.conv
    outward.bias += (outward.weight * shift.view(1, -1, 1, 1, 1)).sum(1).flatten()
    outward.weight /= scale.view(1, -1, 1, 1, 1)
    inward.weight[:channels] *= scale.view(-1, 1, 1, 1, 1)
    inward.bias[:channels] = (inward.bias[:channels] - shift) * scale
    inward.bias[channels:] += 2 * scale.log()
