"""The autoencoder: diffusers' own AutoencoderKLWan, small, on the procedural clips.

``python -m tools.train_flow autoencoder --out DIR`` trains all of it, mostly on short clips;
``decoder`` then trains the decoder alone on long ones. The form is Wan 2.2's (2x2 patches, blocks
whose shortcuts average and copy), which starts as a thumbnail codec once the branches beside the
shortcuts begin at nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan, WanResidualBlock
from torch import Tensor, nn

from osp_opt.tiny.specs import ClipSpec
from tools.train_tiny.clips import ClipGeometry, draw_geometry, render
from tools.train_tiny.optim import MuonWithAdamW, WeightAverage, warm_then_linear
from tools.train_tiny.prompts import all_specs

CONFIG = {
    "base_dim": 8,
    "decoder_base_dim": 16,
    "z_dim": 8,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True, True],
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
    "latents_mean": [0.0] * 8,
    "latents_std": [1.0] * 8,
}
# Weight of the KL term per latent element beside the pixel error: smooth latents, no blur.
KL_WEIGHT = 3e-4
L1_WEIGHT = 0.2  # of the mean absolute error beside the mean squared one; sharpens edges
LEARNING_RATE = 4e-3
# Updates, clips per update, frames per clip, side in pixels of the cut-out: small pictures first,
# which show the most edges per second of training.
PHASES = ((220, 48, 1, 32), (160, 12, 5, 32), (60, 3, 29, 32), (25, 2, 29, 64))
# Afterwards, of the decoder alone: videos long enough that every convolution has seen a whole past.
DECODER_PHASES = ((160, 2, 13, 64), (100, 1, 29, 64))
DECODER_RATE = 1.2e-3
_ADAMW = ("conv_in", "conv_out", "norm")


def train_autoencoder(
    out: Path,
    seed: int = 0,
    phases: Sequence[tuple[int, int, int, int]] = PHASES,
    log_every: int = 25,
    statistics: int = 96,
) -> AutoencoderKLWan:
    """Train from scratch and save to `out` (a diffusers folder, float16)."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    specs = all_specs()
    vae = new_autoencoder().train()
    optimiser = MuonWithAdamW(vae, LEARNING_RATE, adamw=_ADAMW)
    average = WeightAverage(vae, decay=0.98)
    plan = [part for steps, *part in phases for _ in range(steps)]
    start, sums = time.monotonic(), np.zeros(3)
    for step, (batch, frames, side) in enumerate(plan):
        loss, *parts = autoencoder_loss(vae, draw_clips(specs, rng, batch, frames, side))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step(warm_then_linear(step, len(plan)))
        average.update(vae)
        sums += parts
        if (step + 1) % log_every == 0:
            square, error, kl = sums / log_every
            print(
                f"autoencoder step {step + 1}/{len(plan)}, {batch} x {frames} x {side} x {side}: "
                f"mse {square:.4f}, absolute {error:.4f}, KL {kl:.2f} nats per latent, "
                f"{(time.monotonic() - start) / 60:.1f} min",
                flush=True,
            )
            sums[:] = 0
    average.copy_to(vae)
    vae.eval()
    note_statistics(vae, draw_clips(specs, rng, statistics, 29))
    vae.half().save_pretrained(out)
    return vae.float()


def refine_decoder(
    out: Path,
    seed: int = 0,
    phases: Sequence[tuple[int, int, int, int]] = DECODER_PHASES,
    log_every: int = 25,
) -> None:
    """Train the decoder of the autoencoder in `out` further; its latents stay what they are."""
    torch.manual_seed(seed + 1)
    rng = np.random.default_rng(seed + 1)
    specs = all_specs()
    vae: Any = AutoencoderKLWan.from_pretrained(out, torch_dtype=torch.float32)
    trained = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv})
    optimiser = MuonWithAdamW(trained, DECODER_RATE, adamw=_ADAMW)
    average = WeightAverage(trained, decay=0.98)
    plan = [part for steps, *part in phases for _ in range(steps)]
    start, total = time.monotonic(), 0.0
    for step, (batch, frames, side) in enumerate(plan):
        video = draw_clips(specs, rng, batch, frames, side)
        with torch.no_grad():
            latents = vae.encode(video).latent_dist.mode()
        difference = vae.decode(latents).sample - video
        square = difference.square().mean()
        loss = square + L1_WEIGHT * difference.abs().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimiser.step(warm_then_linear(step, len(plan)))
        average.update(trained)
        total += square.item()
        if (step + 1) % log_every == 0:
            print(
                f"decoder step {step + 1}/{len(plan)}, {batch} x {frames} x {side} x {side}: "
                f"mse {total / log_every:.4f}, {(time.monotonic() - start) / 60:.1f} min",
                flush=True,
            )
            total = 0.0
    average.copy_to(trained)
    vae.half().save_pretrained(out)


def new_autoencoder() -> Any:
    """Random weights, but for branches that start at nothing: a thumbnail codec to begin with."""
    vae: Any = AutoencoderKLWan(**CONFIG)  # type: ignore[arg-type]
    for module in vae.modules():
        if isinstance(module, WanResidualBlock):
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)  # type: ignore[arg-type]
    return vae


def draw_clips(
    specs: Sequence[ClipSpec], rng: np.random.Generator, batch: int, frames: int, side: int = 64
) -> Tensor:
    """``[b 3 frames side side]``: random cuts of random clips, shapes anywhere in the frame."""
    chosen = [specs[i] for i in rng.integers(len(specs), size=batch)]
    geometry = draw_geometry(chosen, rng, jitter=float("inf"))
    first = int(rng.integers(geometry.centers.shape[1] - frames + 1))
    cut = ClipGeometry(geometry.centers[:, first : first + frames], geometry.radius)
    video = render(chosen, cut)
    top, left = rng.integers(video.shape[-1] - side + 1, size=2)
    return video[..., top : top + side, left : left + side]


def autoencoder_loss(vae: Any, video: Tensor) -> tuple[Tensor, float, float, float]:
    """The loss, and in numbers: squared error, absolute error, KL per latent element."""
    posterior = vae.encode(video).latent_dist
    decoded = vae.decode(posterior.sample()).sample
    difference = decoded - video
    square, error = difference.square().mean(), difference.abs().mean()
    mean, logvar = posterior.mean, posterior.logvar
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss = square + L1_WEIGHT * error + KL_WEIGHT * kl
    return loss, square.item(), error.item(), kl.item()


@torch.no_grad()
def note_statistics(vae: Any, video: Tensor) -> None:
    """Write mean and deviation of the latents over clips into the configuration.

    Wan's pipelines make latents of mean 0 and deviation 1, and undo that by these numbers.
    """
    means = torch.cat([vae.encode(clips).latent_dist.mean for clips in video.split(2)])
    vae.register_to_config(
        latents_mean=means.mean((0, 2, 3, 4)).tolist(), latents_std=means.std((0, 2, 3, 4)).tolist()
    )
