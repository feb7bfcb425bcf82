"""One video's transformer on several ranks: Ulysses over tokens, guidance branches side by side.

The model is not changed and knows only the seam ``sequence=``. Per block and rank, with n tokens,
width d and p sequence ranks, Ulysses (arXiv 2309.14509) sends three times (p - 1) / p * n / p * d
elements of q, k, v and as many once more of the result: four all-to-alls, the least for attention
whose heads are spread. Outside self-attention every token is on its own.

Shape letters: b batch, n tokens, h heads, k head width, d width, c channels, t frames, y x size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from osp_opt.base.errors import ShapeError
from osp_opt.model.transformer import (
    BlockLoop,
    OpenSoraT2V,
    TextContext,
    TimestepContext,
    run_blocks,
)
from osp_opt.model.vae.tiling import MapTiles, TileFunction
from osp_opt.system.parallel import Parallel, RankGroup
from osp_opt.system.ranks import Workload, check_layout

__all__ = ["ParallelTransformer", "parallelize_transformer", "spread_tiles", "workload"]

TOKEN_DIM, HEAD_DIM = 1, 2  # of ``b n h k``


@dataclass(frozen=True)
class UlyssesSequence:
    """Tokens over ``group`` between blocks, heads over it inside self-attention."""

    group: RankGroup

    def split_tokens(self, tokens: Tensor) -> Tensor:
        """``b n d`` to this rank's ``b n/p d``, a run of tokens in (t h w) order."""
        return self.group.slice(tokens, TOKEN_DIM).contiguous()

    def gather_tokens(self, tokens: Tensor) -> Tensor:
        """``b n/p d`` of all ranks to ``b n d`` (collective)."""
        return self.group.all_gather(tokens, TOKEN_DIM)

    def scatter_heads(self, states: Tensor) -> Tensor:
        """``b n/p h k`` to ``b n h/p k`` (collective)."""
        return self.group.exchange(states, split_dim=HEAD_DIM, join_dim=TOKEN_DIM)

    def gather_heads(self, states: Tensor) -> Tensor:
        """``b n h/p k`` to ``b n/p h k`` (collective)."""
        return self.group.exchange(states, split_dim=TOKEN_DIM, join_dim=HEAD_DIM)


class ParallelTransformer:
    """A transformer spread over the ranks of one replica, called as the model itself is.

    All ranks pass the same arguments and get the same whole result. With ``cfg=2`` the first half
    of the batch (the negative prompts) is computed by the ranks of branch 0, the second by those
    of branch 1. ``blocks`` sees this rank's part of batch and tokens: a cache that decides by step
    alone works unchanged, and anything that sums over tokens has to sum over ``replica`` too.
    """

    def __init__(self, transformer: OpenSoraT2V, parallel: Parallel) -> None:
        self.transformer = transformer
        self.parallel = parallel
        self.sequence = UlyssesSequence(parallel.sequence) if parallel.sequence.size > 1 else None

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.transformer.config

    @property
    def dtype(self) -> torch.dtype:
        """The model's dtype."""
        return self.transformer.dtype

    @property
    def device(self) -> torch.device:
        """The device that holds this rank's copy of the weights."""
        return self.transformer.device

    def encode_text(self, embeds: Tensor, mask: Tensor | None = None) -> TextContext:
        """As the model's: every rank makes the whole, small, context."""
        return self.transformer.encode_text(embeds, mask)

    def encode_timesteps(self, timesteps: Sequence[float]) -> tuple[TimestepContext, ...]:
        """As the model's: every rank makes the whole, small, table."""
        return self.transformer.encode_timesteps(timesteps)

    def __call__(
        self,
        hidden_states: Tensor,
        timestep: Tensor | TimestepContext,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        blocks: BlockLoop = run_blocks,
        text: TextContext | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the noise in ``hidden_states [b c t y x]``; see OpenSoraT2V.forward (collective).

        Raises:
            OptionError: heads or tokens do not divide over the ranks; names layouts that would.
            ShapeError: with ``cfg=2``, an odd batch.
        """
        check_layout(
            self.parallel.layout, workload(self.config, hidden_states.shape[-3:], guided=True)
        )
        if text is None:
            if encoder_hidden_states is None:
                raise ShapeError("the transformer needs encoder_hidden_states or text; got neither")
            text = self.encode_text(encoder_hidden_states, encoder_attention_mask)
        if not isinstance(timestep, TimestepContext):
            timestep = torch.as_tensor(timestep, device=hidden_states.device)
            if timestep.ndim:
                timestep = self._branch(timestep.expand(len(hidden_states)))
        (sample,) = self.transformer(
            self._branch(hidden_states),
            timestep,
            attention_mask=None if attention_mask is None else self._branch(attention_mask),
            blocks=blocks,
            text=self._branch_text(text),
            sequence=self.sequence,
            return_dict=False,
        )
        sample = self.parallel.cfg.all_gather(sample, dim=0)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _branch(self, x: Tensor) -> Tensor:
        """This rank's half of the batch."""
        if len(x) % self.parallel.cfg.size:
            raise ShapeError(
                f"--parallel {self.parallel.layout}: a batch of {len(x)} has no two guidance "
                "branches to split; pass [negative, positive] together or use cfg=1"
            )
        return self.parallel.cfg.slice(x, dim=0)

    def _branch_text(self, text: TextContext) -> TextContext:
        cfg = self.parallel.cfg
        rows = len(text.embeds) // cfg.size
        return text.only(slice(cfg.rank * rows, (cfg.rank + 1) * rows))


def workload(config: Mapping[str, Any], latent: Sequence[int], guided: bool) -> Workload:
    """What latents (t, y, x) give a layout to divide, of a transformer with this `config`."""
    t, y, x = latent
    patch = int(config["patch_size"])
    return Workload(int(config["num_attention_heads"]), t * (y // patch) * (x // patch), guided)


def parallelize_transformer(
    transformer: OpenSoraT2V, parallel: Parallel
) -> OpenSoraT2V | ParallelTransformer:
    """``transformer`` on the ranks of ``parallel``'s replica; itself when that is one rank."""
    if parallel.layout.replica_size == 1:
        return transformer
    return ParallelTransformer(transformer, parallel)


def spread_tiles(group: RankGroup) -> MapTiles:
    """A ``map_tiles`` for the VAE that runs every ``size``-th tile here, the others elsewhere.

    All ranks of ``group`` call it with the same tiles and get all results (collective).
    """

    def map_tiles(function: TileFunction, tiles: Sequence[Tensor]) -> list[Tensor]:
        mine = [function(tile) for tile in tiles[group.rank :: group.size]]
        by_rank = group.gather_lists(mine, like=tiles[0])
        return [by_rank[index % group.size][index // group.size] for index in range(len(tiles))]

    return map_tiles
