"""The transformer: diffusers' WanTransformer3DModel by rectified flow, and the whole pipeline.

``python -m tools.train_flow transformer --out DIR``. The state is saved as it goes; the same
command carries on where a killed one stopped.

Notation: x0 latents of unit variance, x_s = (1 - s) x0 + s eps, the network sees x_s and 1000 s and
predicts v = eps - x0 (Liu et al. 2022, arXiv 2209.03003).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor, nn

from osp_opt.base.artifacts import atomic_path
from osp_opt.tiny.specs import ClipSpec
from tools.train_flow.text import MAX_TOKENS, bundled_as_fast_tokenizer, bundled_as_umt5, embed
from tools.train_tiny.captions import NUM_STYLES, caption
from tools.train_tiny.clips import render_clips
from tools.train_tiny.optim import MuonWithAdamW, WeightAverage, warm_then_linear
from tools.train_tiny.prompts import split_specs

CONFIG = {
    "patch_size": (2, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "in_channels": 8,
    "out_channels": 8,
    "text_dim": 64,
    "freq_dim": 128,
    "ffn_dim": 384,
    "num_layers": 8,
    "cross_attn_norm": True,
    "rope_max_seq_len": 64,
}
# What every call of the pipeline takes: the clips that it was trained on.
CALL = {
    "height": 64,
    "width": 64,
    "num_frames": 29,
    "guidance_scale": 2.0,
    "max_sequence_length": MAX_TOKENS,
}
SHIFT = 3.0  # of the scheduler: s -> shift s / (1 + (shift - 1) s)
CAPTION_DROPOUT = 0.1  # of the captions are empty, so that guidance has an unconditional branch
CANONICAL_SHARE = 0.5  # of the captions use the canonical phrasing
LEARNING_RATE = 3e-3
BATCH = 16
# s = sigmoid(spread normal + centre): what moves where is decided at high noise.
SPREAD, CENTRE = 1.2, 0.3
_ADAMW = ("patch_embedding", "proj_out", "scale_shift_table", "norm")


def train_transformer(
    out: Path,
    seed: int = 0,
    steps: int = 5000,
    log_every: int = 50,
    per_spec: int = 3,
    trained_on: Sequence[ClipSpec] = split_specs()[0],
) -> None:
    """Train on clips that ``out/vae`` encodes, and write the pipeline into `out`."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae: Any = AutoencoderKLWan.from_pretrained(out / "vae", torch_dtype=torch.float32).eval()
    specs = tuple(spec for spec in trained_on for _ in range(per_spec))
    latents = encode_clips(vae, specs, rng, out / "latents.pt")
    encoder, tokenizer = bundled_as_umt5(), bundled_as_fast_tokenizer()
    row = {spec: i for i, spec in enumerate(dict.fromkeys(specs))}
    texts = ["", *(caption(spec, style) for spec in row for style in range(NUM_STYLES))]
    embeds = embed(encoder, tokenizer, texts)

    model: Any = WanTransformer3DModel(**CONFIG).train()  # type: ignore[arg-type]
    optimiser = MuonWithAdamW(model, LEARNING_RATE, weight_decay=0.01, adamw=_ADAMW)
    average = WeightAverage(model, decay=0.99)
    state_file, first = out / "training.pt", 0
    if state_file.exists():
        first = _restore(state_file, model, optimiser, average, rng)
        print(f"carrying on at step {first}", flush=True)
    start, running = time.monotonic(), 0.0
    for step in range(first, steps):
        chosen = rng.integers(len(specs), size=BATCH)
        texts_of = [_draw_text(row[specs[i]], rng) for i in chosen]
        loss = flow_loss(model, latents[chosen], embeds[texts_of])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step(warm_then_linear(step, steps, warm=100))
        average.update(model)
        running += loss.item()
        if (step + 1) % log_every == 0:
            minutes = (time.monotonic() - start) / 60
            print(
                f"transformer step {step + 1}/{steps}: loss {running / log_every:.4f}, "
                f"{minutes:.1f} min",
                flush=True,
            )
            running = 0.0
        if (step + 1) % 250 == 0 or step + 1 == steps:
            _keep(state_file, step + 1, model, optimiser, average, rng)
    averaged: Any = WanTransformer3DModel(**CONFIG)  # type: ignore[arg-type]
    average.copy_to(averaged)
    save_pipeline(out, vae, encoder, tokenizer, averaged)


def save_pipeline(out: Path, vae: Any, encoder: Any, tokenizer: Any, transformer: Any) -> None:
    """Write a folder that diffusers alone loads; networks in float16."""
    pipeline: Any = WanPipeline(
        tokenizer=tokenizer,
        text_encoder=encoder,
        vae=vae.half(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=SHIFT),
        transformer=transformer.half(),
    )
    pipeline.save_pretrained(out)
    with atomic_path(out / "call.yaml") as path:
        path.write_text(yaml.safe_dump(CALL, sort_keys=False))
    vae.float()
    transformer.float()


@torch.no_grad()
def encode_clips(
    vae: Any, specs: tuple[ClipSpec, ...], rng: np.random.Generator, cache: Path
) -> Tensor:
    """``[n 8 8 8 8]`` of unit variance: a rendered clip of every spec (kept in `cache`)."""
    if cache.exists():
        kept: Tensor = torch.load(cache, weights_only=True)
        return kept
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    deviation = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    latents = []
    for first in range(0, len(specs), 8):
        video, _ = render_clips(specs[first : first + 8], rng)
        latents.append((vae.encode(video).latent_dist.mode() - mean) / deviation)
        if first % 400 == 0:
            print(f"encoded {first}/{len(specs)} clips", flush=True)
    stacked = torch.cat(latents)
    with atomic_path(cache) as path:
        torch.save(stacked, path)
    return stacked


def flow_loss(model: Any, x0: Tensor, embeds: Tensor) -> Tensor:
    """Mean squared error of the velocity at random s, stratified over the batch."""
    level = (torch.randperm(len(x0)) + torch.rand(len(x0))) / len(x0)
    s = torch.sigmoid(SPREAD * torch.special.ndtri(level.clamp(1e-4, 1 - 1e-4)) + CENTRE)
    eps, weight = torch.randn_like(x0), s.view(-1, 1, 1, 1, 1)
    x = (1 - weight) * x0 + weight * eps
    predicted: Tensor = model(x, 1000 * s, embeds, return_dict=False)[0]
    return (predicted - (eps - x0)).square().mean()


def _draw_text(spec: int, rng: np.random.Generator) -> int:
    """Row of one random phrasing of a spec, or of the empty text."""
    if rng.random() < CAPTION_DROPOUT:
        return 0
    style = 0 if rng.random() < CANONICAL_SHARE else int(rng.integers(NUM_STYLES))
    return 1 + spec * NUM_STYLES + style


def _keep(
    file: Path,
    step: int,
    model: nn.Module,
    optimiser: MuonWithAdamW,
    average: WeightAverage,
    rng: np.random.Generator,
) -> None:
    state = {
        "step": step,
        "model": model.state_dict(),
        "average": average.shadow,
        "average_steps": average.steps,
        "optimiser": optimiser.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": json.dumps(rng.bit_generator.state),
    }
    with atomic_path(file) as path:
        torch.save(state, path)


def _restore(
    file: Path,
    model: nn.Module,
    optimiser: MuonWithAdamW,
    average: WeightAverage,
    rng: np.random.Generator,
) -> int:
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    average.shadow, average.steps = state["average"], state["average_steps"]
    optimiser.load_state_dict(state["optimiser"])
    torch.set_rng_state(state["torch_rng"])
    rng.bit_generator.state = json.loads(state["numpy_rng"])
    return int(state["step"])
