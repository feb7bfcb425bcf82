"""The work of the original denoising step, written out plainly: the baseline of the comparison.

What Open-Sora-Plan v1.2 does in a step and osp-opt does not: the caption is projected again, with
all its padding; every block projects it to keys and values again; the caption mask and the latent
mask (all ones when sampling) are additive biases turned into dense boolean masks; every block
gathers its rotary cosines and sines by token position; nothing is fused. Where the original keeps
something (its cosine tables), so does this. It runs on an OpenSoraT2V's own weights, so both sides
compute the same function, which tests/benchmarks/test_speed.py checks.

Shape letters: b batch, n video tokens, l caption tokens, h heads, k head width, d width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from osp_opt.model.embeddings import timestep_sinusoids
from osp_opt.model.transformer import OpenSoraT2V

Axes = list[tuple[Tensor, Tensor, Tensor]]
"""Per axis: the position of every token, and the cosine and sine tables by position."""


class UpstreamStep:
    """One guided step of the default sampler with the original's work.

    Args:
        model: whose weights are used.
        embeds: ``[2b l c]``, negative prompts first.
        mask: ``[2b l]``, nonzero where a token counts.
        guidance_scale: of classifier-free guidance.
    """

    def __init__(
        self, model: OpenSoraT2V, embeds: Tensor, mask: Tensor, guidance_scale: float
    ) -> None:
        self.model = model
        self.embeds = embeds
        self.mask = mask
        self.guidance_scale = guidance_scale
        self.block: Callable[..., Tensor] = run_block
        self._axes: Axes | None = None

    def compile(self) -> None:
        """Compile the block, as osp-opt compiles its own."""
        self.block = torch.compile(run_block)

    def __call__(self, x: Tensor, a: float, b: float, timestep: float, z: Tensor) -> Tensor:
        """Latents ``[b c t h w]`` at noise level b from those at a (variance exploding)."""
        scaled = x / math.sqrt(a * a + 1)
        eps = self.predict(torch.cat([scaled, scaled]).to(self.model.dtype), timestep).float()
        negative, positive = eps.chunk(2)
        eps = negative + self.guidance_scale * (positive - negative)
        denoised = x - a * eps
        sigma_up = (b**2 * (a**2 - b**2) / a**2) ** 0.5
        sigma_down = (b**2 - sigma_up**2) ** 0.5
        return x + (x - denoised) / a * (sigma_down - a) + z * sigma_up

    def predict(self, latents: Tensor, timestep: float) -> Tensor:
        """The network's output for ``[2b c t h w]``."""
        model = self.model
        batch, _, t, height, width = latents.shape
        p = int(model.config["patch_size"])
        grid = (t, height // p, width // p)
        frames = latents.transpose(1, 2).flatten(0, 1)
        x = model.pos_embed.proj(frames).flatten(2).transpose(1, 2)
        x = x.reshape(batch, -1, x.shape[-1])
        times = torch.full((batch,), timestep, device=x.device)
        embedder: Any = model.adaln_single.emb["timestep_embedder"]
        embedded = embedder(timestep_sinusoids(times).to(x.dtype))
        modulation = model.adaln_single.linear(F.silu(embedded)).reshape(batch, 6, -1)
        caption = model.caption_projection(self.embeds.to(x.dtype))
        tokens = x.shape[1]
        bias = (1 - torch.ones(batch, 1, tokens, device=x.device)) * -10_000.0
        video_mask = (bias > -1).unsqueeze(1).expand(-1, -1, tokens, -1).contiguous()
        bias = (1 - self.mask.float()[:, None]) * -10_000.0
        text_mask = (bias > -1).unsqueeze(1).expand(-1, -1, tokens, -1).contiguous()
        axes = self._axes_of(grid, x)
        for block in model.transformer_blocks:
            x = self.block(block, x, caption, modulation, axes, video_mask, text_mask)
        shift, scale = (model.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        x = model.proj_out(model.norm_out(x) * (1 + scale) + shift)
        x = x.reshape(batch, *grid, p, p, -1)
        return torch.einsum("bthwpqc->bcthpwq", x).reshape(batch, -1, t, height, width)

    def _axes_of(self, grid: tuple[int, int, int], x: Tensor) -> Axes:
        if self._axes is None:
            positions = torch.tensor(list(product(*map(range, grid))), device=x.device)
            third = int(self.model.config["attention_head_dim"]) // 3
            frequency = 1.0 / 10_000.0 ** (torch.arange(0, third, 2).float() / third)
            self._axes = []
            for axis, scale in enumerate(self.model.interpolation_scale):
                angles = torch.outer(torch.arange(grid[axis]).float() / scale, frequency)
                angles = torch.cat((angles, angles), dim=-1).to(x)
                self._axes.append((positions[:, axis], angles.cos(), angles.sin()))
        return self._axes


def run_block(
    block: Any,
    x: Tensor,
    caption: Tensor,
    modulation: Tensor,
    axes: Axes,
    video_mask: Tensor,
    text_mask: Tensor,
) -> Tensor:
    """One block, every part of it anew."""
    tables = (block.scale_shift_table[None] + modulation).chunk(6, dim=1)
    shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = tables
    h = block.norm1(x) * (1 + scale_msa) + shift_msa
    attn = block.attn1
    q, k, v = (_heads(attn, layer, h) for layer in (attn.to_q, attn.to_k, attn.to_v))
    q, k = _rotate(q, axes), _rotate(k, axes)
    x = x + gate_msa * _merge(attn, F.scaled_dot_product_attention(q, k, v, attn_mask=video_mask))
    attn = block.attn2
    q = _heads(attn, attn.to_q, x)
    k, v = _heads(attn, attn.to_k, caption), _heads(attn, attn.to_v, caption)
    x = x + _merge(attn, F.scaled_dot_product_attention(q, k, v, attn_mask=text_mask))
    h = block.norm2(x) * (1 + scale_mlp) + shift_mlp
    return x + gate_mlp * block.ff(h)


def _heads(attention: Any, layer: nn.Linear, x: Tensor) -> Tensor:
    """``b n d`` to ``b h n k``."""
    return layer(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)


def _merge(attention: Any, x: Tensor) -> Tensor:
    return attention.to_out[0](x.transpose(1, 2).flatten(2))


def _rotate(x: Tensor, axes: Axes) -> Tensor:
    rotated = []
    for part, (positions, cos, sin) in zip(x.chunk(3, dim=-1), axes, strict=True):
        first, second = part.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        rotated.append(part * F.embedding(positions, cos) + turned * F.embedding(positions, sin))
    return torch.cat(rotated, dim=-1)
