"""One block of the transformer, the loop over blocks, and what a block needs of the prompt.

Shape letters: b batch, n video tokens in (t h w) order, l caption tokens, k head width, d model
width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from osp_opt.model.attention import CrossAttention, Rotary, SelfAttention, SequenceParallel

Layer = Callable[[Tensor], Tensor]  # one block with everything but the hidden state bound
BlockLoop = Callable[[Sequence[Layer], Tensor], Tensor]


def run_blocks(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Run every block once, in order: the model as it was trained."""
    for layer in layers:
        x = layer(x)
    return x


@dataclass(frozen=True)
class TextContext:
    """What the transformer needs of a prompt; it does not depend on latents or timestep.

    ``keys[i]`` and ``values[i]`` ``[b l heads k]`` belong to block i; ``mask`` is boolean
    ``[b 1 1 l]``, or None when every token counts; l is the longest real prompt of the batch.
    """

    caption: Tensor  # [b l d], projected
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    mask: Tensor | None


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x (1 + scale) + shift`` (DiT, arXiv 2212.09748)."""
    return torch.addcmul(shift, x, 1 + scale)


def modulated_norm(norm: nn.LayerNorm, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``norm(x) (1 + scale) + shift`` for ``x [b n d]``, shift and scale ``[b 1 d]``.

    A shared row, ``[1 1 d]``, makes it an affine layer norm: one pass over x instead of two.
    """
    if len(scale) > 1 or norm.elementwise_affine:
        return modulate(norm(x), shift, scale)
    weight, bias = (1 + scale).flatten(), shift.flatten()
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


class OpenSoraBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward of one layer.

    The adaLN-single table of the block plus the timestep's modulation give, in this order, shift,
    scale and gate of the self-attention, then of the feed-forward. Cross-attention has neither
    norm nor gate (PixArt-alpha, arXiv 2310.00426, section 2.3).
    """

    def __init__(
        self,
        index: int,
        width: int,
        heads: int,
        head_width: int,
        cross_attention_dim: int,
        *,
        activation_fn: str,
        attention_bias: bool,
        dropout: float,
        norm_eps: float,
        norm_elementwise_affine: bool,
    ) -> None:
        super().__init__()
        self.index = index  # which keys and values of the text context are its own
        norm = partial(nn.LayerNorm, width, norm_eps, norm_elementwise_affine)
        self.norm1 = norm()
        self.attn1 = SelfAttention(width, heads, head_width, width, attention_bias, dropout)
        self.attn2 = CrossAttention(
            width, heads, head_width, cross_attention_dim, attention_bias, dropout
        )
        self.norm2 = norm()
        self.ff = FeedForward(width, dropout=dropout, activation_fn=activation_fn)
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)

    def forward(
        self,
        hidden_states: Tensor,
        modulation: Tensor,
        text: TextContext,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
        sequence: SequenceParallel | None = None,
    ) -> Tensor:
        """``hidden_states [b n d]``, ``modulation [b 6 d]``; the rest as in models.attention."""
        key, value = text.keys[self.index], text.values[self.index]
        return self.run(hidden_states, modulation, key, value, text.mask, rotary, mask, sequence)

    def run(
        self,
        x: Tensor,
        modulation: Tensor,
        text_key: Tensor,
        text_value: Tensor,
        text_mask: Tensor | None,
        rotary: Rotary | None,
        mask: Tensor | None,
        sequence: SequenceParallel | None,
    ) -> Tensor:
        """The block proper. It does not know its index, so one compiled graph serves all blocks."""
        tables = (self.scale_shift_table + modulation)[:, :, None]
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = tables.unbind(1)
        attended = self.attn1(
            modulated_norm(self.norm1, x, shift_msa, scale_msa), rotary, mask, sequence
        )
        x = torch.addcmul(x, gate_msa, attended)
        x = x + self.attn2(x, text_key, text_value, text_mask)
        changed = self.ff(modulated_norm(self.norm2, x, shift_mlp, scale_mlp))
        return torch.addcmul(x, gate_mlp, changed)
