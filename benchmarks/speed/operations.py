"""Floating-point operations of the transformer, counted on paper (a multiply-add is two)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepWork:
    """What one evaluation of the network has to compute.

    Matrix products only: norms, activations and rotary embedding are far below a per cent. A
    prompt's own work (caption projection, its keys and values) is done once per prompt, a
    schedule's once per schedule, so neither belongs to a step.
    """

    batch: int
    tokens: int
    text_tokens: int
    width: int
    layers: int
    patch_values: int
    """Latent values of one patch: channels x patch height x patch width."""
    output_values: int

    @classmethod
    def of(
        cls, config: Any, latent: tuple[int, int, int], text_tokens: int, batch: int = 2
    ) -> StepWork:
        """For a transformer's ``config`` and latent frames, height and width."""
        t, h, w = latent
        patch = int(config["patch_size"])
        return cls(
            batch=batch,
            tokens=t * (h // patch) * (w // patch),
            text_tokens=text_tokens,
            width=int(config["num_attention_heads"] * config["attention_head_dim"]),
            layers=int(config["num_layers"]),
            patch_values=int(config["in_channels"]) * patch**2,
            output_values=int(config["out_channels"] or config["in_channels"]) * patch**2,
        )

    @property
    def linear(self) -> int:
        """Per step, in products with weights: 28 d^2 multiply-adds of two per token and layer.

        Self-attention's q, k, v and output are 8 d^2, cross-attention's q and output 4 d^2, the
        feed-forward of four times the width 16 d^2.
        """
        d = self.width
        ends = 2 * d * (self.patch_values + self.output_values)
        return self.batch * self.tokens * (28 * d**2 * self.layers + ends)

    @property
    def attention(self) -> int:
        """Per step, in attention: 4 n d for each of n queries of self-attention, 4 l d of cross."""
        keys = self.tokens + self.text_tokens
        return self.batch * self.layers * 4 * self.tokens * keys * self.width

    @property
    def total(self) -> int:
        return self.linear + self.attention


def ulysses_elements(work: StepWork, ranks: int) -> int:
    """The least that a rank sends per step: q, k, v and the result of each self-attention.

    Of its n/p tokens a rank keeps one p-th of the heads, so each of the four sends
    (p - 1) / p of n/p d elements (Ulysses, arXiv 2309.14509, section 3.2).
    """
    local = work.batch * (work.tokens // ranks) * work.width
    return 4 * work.layers * local * (ranks - 1) // ranks


def gather_elements(work: StepWork, ranks: int) -> int:
    """What a rank sends to the others so that all hold the whole prediction."""
    return (ranks - 1) * work.batch * (work.tokens // ranks) * work.output_values
