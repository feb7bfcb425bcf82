"""One block of the transformer, the loop over blocks, and what a block needs of the prompt.

Shape letters: b batch, n video tokens in (t h w) order, l caption tokens, k head width, d model
width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import Tensor, nn

from osp_opt.model.attention import CrossAttention, Rotary, SelfAttention, SequenceParallel
from osp_opt.model.plain import is_plain

Layer = Callable[[Tensor], Tensor]  # one block with everything but the hidden state bound
BlockLoop = Callable[[Sequence[Layer], Tensor], Tensor]


def run_blocks(layers: Sequence[Layer], x: Tensor) -> Tensor:
    """Run every block once, in order: the model as it was trained."""
    for layer in layers:
        x = layer(x)
    return x


@dataclass(frozen=True, eq=False)
class TextContext:
    """The prompts of a batch, and what the transformer has made of them so far.

    None of it depends on latents or timestep, so it is made once: the caption at the first call of
    the transformer, keys and values at the first call of each block. They are made inside those
    calls, where whatever has been attached to the modules (offloading, adapters) is in force.

    ``embeds`` are ``[b l c]``; ``mask`` is boolean ``[b 1 1 l]``, or None when every token counts;
    l is the longest real prompt of the batch. ``rows`` are the prompts that a caller gets to see.
    """

    embeds: Tensor
    mask: Tensor | None
    rows: slice = field(default_factory=lambda: slice(None))
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    # `_made` fills up from call to call: compiled code would be made anew each time.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def project(self, projection: nn.Module, dtype: torch.dtype) -> None:
        """Make the caption ``[b l d]``, where it has not been made."""
        if "caption" not in self._made:
            self._made["caption"] = projection(self.embeds.to(dtype))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def keys_and_values(self, attention: CrossAttention) -> tuple[Tensor, Tensor, Tensor | None]:
        """Keys and values ``[b l heads k]`` of one block's attention, and the mask."""
        if attention not in self._made:
            self._made[attention] = attention.encode(self._made["caption"])
        key, value = self._made[attention]
        mask = None if self.mask is None else self.mask[self.rows]
        return key[self.rows], value[self.rows], mask

    def only(self, rows: slice) -> TextContext:
        """Some of the prompts. What is made is made for all of them, so it is bit for bit alike."""
        return replace(self, rows=rows)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x (1 + scale) + shift`` (DiT, arXiv 2212.09748)."""
    return torch.addcmul(shift, x, 1 + scale)


def modulated_norm(norm: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``norm(x) (1 + scale) + shift`` for ``x [b n d]``, shift and scale ``[b 1 d]``.

    A shared row, ``[1 1 d]``, makes it an affine layer norm: one pass over x instead of two.
    """
    if len(scale) > 1 or not is_plain(norm, nn.LayerNorm) or norm.elementwise_affine:
        return modulate(norm(x), shift, scale)
    weight, bias = (1 + scale).flatten(), shift.flatten()
    return F.layer_norm(x, norm.normalized_shape, weight, bias, norm.eps)


class OpenSoraBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward of one layer.

    The adaLN-single table of the block plus the timestep's modulation give, in this order, shift,
    scale and gate of the self-attention, then of the feed-forward. Cross-attention has neither
    norm nor gate (PixArt-alpha, arXiv 2310.00426, section 2.3).
    """

    # Set by diffusers' enable_gradient_checkpointing.
    gradient_checkpointing = False
    _gradient_checkpointing_func: Any = None

    def __init__(
        self,
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
        """``hidden_states [b n d]``, ``modulation [b 6 d]``; the rest as in `attention.py`."""
        # What Python has to decide is decided here, outside of what may be compiled.
        key, value, text_mask = text.keys_and_values(self.attn2)
        run: Callable[..., Tensor] = self.run
        if self.gradient_checkpointing and torch.is_grad_enabled():
            run = partial(self._gradient_checkpointing_func, run)
        fused = self.attn1.fused
        return run(hidden_states, modulation, key, value, text_mask, rotary, mask, sequence, fused)

    def modulated_input(self, hidden_states: Tensor, modulation: Tensor) -> Tensor:
        """What self-attention is given: ``hidden_states [b n d]`` normed, scaled and shifted."""
        tables = (self.scale_shift_table + modulation)[:, :, None]
        return modulated_norm(self.norm1, hidden_states, tables[:, 0], tables[:, 1])

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
        fused: bool,
    ) -> Tensor:
        """The block proper. It does not know its place, so one compiled graph serves all blocks."""
        tables = (self.scale_shift_table + modulation)[:, :, None]
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = tables.unbind(1)
        attended = self.attn1(
            modulated_norm(self.norm1, x, shift_msa, scale_msa), rotary, mask, sequence, fused
        )
        x = torch.addcmul(x, gate_msa, attended)
        x = x + self.attn2(x, text_key, text_value, text_mask)
        changed = self.ff(modulated_norm(self.norm2, x, shift_mlp, scale_mlp))
        return torch.addcmul(x, gate_mlp, changed)
