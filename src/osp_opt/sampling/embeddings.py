"""Prompts as the pipeline hands them to the transformer. b prompts, l tokens, c channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from osp_opt.base.errors import OptionError
from osp_opt.model.text.encoder import preprocess_prompt, tokenize
from osp_opt.sampling.offload import execution_device

__all__ = ["PromptEmbeddings", "encode_texts"]


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

    @property
    def by_name(self) -> dict[str, Tensor | None]:
        """The four tensors, under the names that diffusers' callbacks know them by."""
        return {
            "prompt_embeds": self.embeds,
            "prompt_attention_mask": self.mask,
            "negative_prompt_embeds": self.negative_embeds,
            "negative_prompt_attention_mask": self.negative_mask,
        }

    def to(self, device: torch.device) -> PromptEmbeddings:
        """With the embeddings on `device`; masks stay where they are."""
        negative = None if self.negative_embeds is None else self.negative_embeds.to(device)
        return PromptEmbeddings(self.embeds.to(device), self.mask, negative, self.negative_mask)

    def repeated(self, times: int) -> PromptEmbeddings:
        """Every prompt `times` times in a row."""
        return PromptEmbeddings(
            *(
                None if part is None else torch.repeat_interleave(part, times, dim=0)
                for part in (self.embeds, self.mask, self.negative_embeds, self.negative_mask)
            )  # type: ignore[arg-type]
        )


@torch.no_grad()
def encode_texts(
    tokenizer: Any,
    text_encoder: Any,
    texts: list[str],
    max_sequence_length: int,
    clean_caption: bool = True,
) -> tuple[Tensor, Tensor]:
    """Embeddings [b l c] and mask [b l] (on the CPU) of texts, cut at `max_sequence_length` tokens.

    `clean_caption` applies the original caption cleaning, else texts are lower-cased only. Raises
    OptionError without an encoder.
    """
    if text_encoder is None or tokenizer is None:
        raise OptionError("the text encoder was released or never given; pass prompt_embeds")
    texts = [preprocess_prompt(text, clean_caption) for text in texts]
    ids, mask = tokenize(tokenizer, texts, max_sequence_length)
    device = execution_device(text_encoder)
    # One by one: in a batch a text's last bits would depend on the others.
    embeds = [
        text_encoder(row[None].to(device), attention_mask=keep[None].to(device))[0]
        for row, keep in zip(ids, mask, strict=True)
    ]
    return torch.cat(embeds), mask
