"""Prompts as the pipeline hands them to the transformer. b prompts, l tokens, c channels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from osp_opt.base.errors import OptionError


@dataclass(frozen=True)
class PromptEmbeddings:
    """Text encoder output of prompts and, for guidance, of their negative prompts.

    `embeds` [b l c] and `mask` [b l], nonzero where a token counts; the padding of `embeds` is
    whatever the encoder made of it. Raises OptionError when shapes do not fit together.
    """

    embeds: Tensor
    mask: Tensor
    negative_embeds: Tensor | None = None
    negative_mask: Tensor | None = None

    def __post_init__(self) -> None:
        for name, embeds, mask in (
            ("prompt", self.embeds, self.mask),
            ("negative prompt", self.negative_embeds, self.negative_mask),
        ):
            if embeds is None and mask is None and name != "prompt":
                continue
            if embeds is None or mask is None:
                raise OptionError(f"{name}: embeddings and attention mask belong together")
            if embeds.ndim != 3 or mask.shape != embeds.shape[:2]:
                raise OptionError(
                    f"{name}: embeddings are {tuple(embeds.shape)} and their mask "
                    f"{tuple(mask.shape)}; expected [b l c] and [b l]"
                )
        if self.negative_embeds is not None and self.negative_embeds.shape != self.embeds.shape:
            raise OptionError(
                f"prompt embeddings are {tuple(self.embeds.shape)}, negative ones "
                f"{tuple(self.negative_embeds.shape)}; they must be alike"
            )

    def __len__(self) -> int:
        return len(self.embeds)

    @property
    def negative(self) -> tuple[Tensor, Tensor] | None:
        """Embeddings and mask of the negative prompts."""
        if self.negative_embeds is None or self.negative_mask is None:
            return None
        return self.negative_embeds, self.negative_mask

    def repeated(self, times: int) -> PromptEmbeddings:
        """Every prompt `times` times in a row."""
        return PromptEmbeddings(
            *(
                None if part is None else torch.repeat_interleave(part, times, dim=0)
                for part in (self.embeds, self.mask, self.negative_embeds, self.negative_mask)
            )  # type: ignore[arg-type]
        )
