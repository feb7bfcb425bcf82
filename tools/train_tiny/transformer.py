"""Second stage of training the bundled model: transformer and text encoder, together.

``python -m tools.train_tiny transformer --out DIR`` (about an hour on two CPU cores). The state
is saved as it goes; the same command carries on where a killed one stopped.

Notation: x0 latents of unit variance, x = x0 + sigma * eps (variance exploding); the network sees
x / sqrt(1 + sigma^2) and predicts eps (Ho et al. 2020, arXiv 2006.11239).
"""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import MT5EncoderModel

from osp_opt.base.artifacts import atomic_path
from osp_opt.model.text.encoder import load_tokenizer
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.model.vae.autoencoder import VAE_SCALE, CausalVAEModel
from osp_opt.sampling.schedule import sigma_table
from osp_opt.tiny.specs import ClipSpec
from tools.train_tiny.captions import NUM_STYLES, caption
from tools.train_tiny.clips import render_clips
from tools.train_tiny.optim import MuonWithAdamW, WeightAverage, warm_then_linear
from tools.train_tiny.prompts import split_specs
from tools.train_tiny.text import build_text_encoder_config, build_tokenizer

TRANSFORMER_CONFIG = {
    "num_attention_heads": 4,
    "attention_head_dim": 24,
    "num_layers": 12,
    "cross_attention_dim": 96,
    "caption_channels": 64,
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": (8, 8),
    "sample_size_t": 8,
    "attention_mode": "math",
}
# What sampling uses unless told otherwise; a checkpoint without this file gets the official values.
DEFAULTS = {
    "guidance_scale": 2.0,
    "negative_prompt": "",
    "prompt_template": "{}",
    "max_sequence_length": 24,
    "num_frames": 29,
    "height": 64,
    "width": 64,
    "fps": 12,
}
MAX_TOKENS = 24
CAPTION_DROPOUT = 0.1  # of the captions are empty, so that guidance has an unconditional branch
CANONICAL_SHARE = 0.5  # of the captions use the canonical phrasing
LEARNING_RATE = 2e-3
BATCH = 32


@dataclass(frozen=True)
class LatentClips:
    """Encoded training clips: ``latents [n 4 8 8 8]`` of unit variance, and what they show."""

    latents: Tensor
    specs: tuple[ClipSpec, ...]


@torch.no_grad()
def encode_clips(vae: CausalVAEModel, per_spec: int, seed: int, cache: Path) -> LatentClips:
    """Render and encode ``per_spec`` clips of every training combination (kept in ``cache``)."""
    specs = tuple(spec for spec in split_specs()[0] for _ in range(per_spec))
    if cache.exists():
        return LatentClips(torch.load(cache, weights_only=True), specs)
    rng = np.random.default_rng(seed)
    latents = []
    for first in range(0, len(specs), 8):
        video, _ = render_clips(specs[first : first + 8], rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mean = vae.encode(video).latent_dist.mode()
        latents.append(mean.float() * VAE_SCALE)
        if first % 800 == 0:
            print(f"encoded {first}/{len(specs)} clips", flush=True)
    stacked = torch.cat(latents)
    with atomic_path(cache) as path:
        torch.save(stacked, path)
    return LatentClips(stacked, specs)


def loss_weight(sigma: Tensor) -> Tensor:
    """Weight of the squared error of eps: the error of x0 counts alike for sigma in [0.2, 5].

    An error of eps is an error of x0 divided by sigma, so equal weights would teach the finest
    noise levels only; what moves where is decided at sigma of about 3 to 10. The bounds keep the
    ends from dominating (as in min-SNR weighting, Hang et al. 2023, arXiv 2303.09556).
    """
    return sigma.square().clamp(0.05, 25.0)


class Captions:
    """Tokenised captions of every spec and phrasing; row 0 of each spec is the empty prompt."""

    def __init__(self, tokenizer_folder: Path, specs: tuple[ClipSpec, ...]) -> None:
        tokenizer = load_tokenizer(tokenizer_folder)
        self.index = {spec: i for i, spec in enumerate(dict.fromkeys(specs))}
        texts = [""] + [caption(spec, s) for spec in self.index for s in range(NUM_STYLES)]
        tokens = tokenizer(
            texts,
            max_length=MAX_TOKENS,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        )
        self.ids, self.mask = tokens.input_ids, tokens.attention_mask

    def draw(self, specs: list[ClipSpec], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Token ids and mask ``[b l]`` of one random phrasing each, some of them empty."""
        rows = []
        for spec in specs:
            style = 0 if rng.random() < CANONICAL_SHARE else int(rng.integers(NUM_STYLES))
            row = 1 + self.index[spec] * NUM_STYLES + style
            rows.append(0 if rng.random() < CAPTION_DROPOUT else row)
        return self.ids[rows], self.mask[rows]


def train_transformer(
    out: Path, seed: int = 0, steps: int = 4000, per_spec: int = 16, log_every: int = 50
) -> None:
    """Train on the clips that ``out/vae`` encodes; write transformer, text_encoder, defaults."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = CausalVAEModel.from_pretrained(out / "vae", torch_dtype=torch.float32).eval()
    clips = encode_clips(vae, per_spec, seed, out / "latents.pt")
    vocabulary = build_tokenizer(out / "text_encoder")
    model = nn.ModuleDict(
        {
            "transformer": OpenSoraT2V(**TRANSFORMER_CONFIG),
            "text_encoder": MT5EncoderModel(build_text_encoder_config(vocabulary)),
        }
    ).train()
    # The tokenizer's folder becomes loadable once a model config lies beside it.
    text_encoder: Any = model["text_encoder"]
    text_encoder.config.save_pretrained(out / "text_encoder")
    captions = Captions(out / "text_encoder", clips.specs)
    optimiser = MuonWithAdamW(
        model,
        LEARNING_RATE,
        weight_decay=0.01,
        adamw=("pos_embed", "proj_out", "scale_shift_table", "shared", "relative_attention_bias"),
    )
    average = WeightAverage(model, decay=0.998)
    sigmas = torch.as_tensor(sigma_table(), dtype=torch.float32)
    state_file, first = out / "training.pt", 0
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        first = state["step"]
        model.load_state_dict(state["model"])
        average.shadow, average.steps = state["average"], state["average_steps"]
        optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["torch_rng"])
        rng.bit_generator.state = json.loads(state["numpy_rng"])
        print(f"carrying on at step {first}", flush=True)
    start, running = time.monotonic(), 0.0
    for step in range(first, steps):
        chosen = rng.integers(len(clips.specs), size=BATCH)
        ids, mask = captions.draw([clips.specs[i] for i in chosen], rng)
        loss = _loss(model, clips.latents[chosen], ids, mask, sigmas)
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
        if (step + 1) % 250 == 0:
            with atomic_path(state_file) as path:
                torch.save(
                    {
                        "step": step + 1,
                        "model": model.state_dict(),
                        "average": average.shadow,
                        "average_steps": average.steps,
                        "optimiser": optimiser.state_dict(),
                        "torch_rng": torch.get_rng_state(),
                        "numpy_rng": json.dumps(rng.bit_generator.state),
                    },
                    path,
                )
            _save(model, average, out)
    _save(model, average, out)


def _loss(model: nn.ModuleDict, x0: Tensor, ids: Tensor, mask: Tensor, sigmas: Tensor) -> Tensor:
    # Stratified over the batch, which makes the loss less noisy. Beyond timestep 800 (sigma 27)
    # next to nothing is left of x0: a tenth of the draws is enough for it.
    level = (torch.randperm(len(x0)) + torch.rand(len(x0))) / len(x0)
    timestep = torch.where(level < 0.9, level / 0.9 * 800, 800 + (level - 0.9) / 0.1 * 199).long()
    sigma = sigmas[timestep].view(-1, 1, 1, 1, 1)
    eps = torch.randn_like(x0)
    x = (x0 + sigma * eps) / (1 + sigma.square()).sqrt()
    embeds = model["text_encoder"](input_ids=ids, attention_mask=mask).last_hidden_state
    predicted = model["transformer"](x, timestep.float(), embeds, mask, return_dict=False)[0]
    error = (predicted - eps).square().mean((1, 2, 3, 4))
    return (loss_weight(sigma.flatten()) * error).mean()


def _save(model: nn.ModuleDict, average: WeightAverage, out: Path) -> None:
    """Write the averaged weights as a checkpoint."""
    kept = {key: value.clone() for key, value in model.state_dict().items()}
    average.copy_to(model)
    transformer: Any = copy.deepcopy(model["transformer"]).half()  # half the size of the package
    transformer.save_pretrained(out / "transformer")
    text_encoder: Any = model["text_encoder"]
    text_encoder.save_pretrained(out / "text_encoder")
    model.load_state_dict(kept)
    with atomic_path(out / "defaults.json") as path:
        path.write_text(json.dumps(DEFAULTS, indent=2) + "\n")
