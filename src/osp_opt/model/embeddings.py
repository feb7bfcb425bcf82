"""Embeddings of Open-Sora-Plan v1.2: patches, timestep, caption and absolute positions.

Shape letters: b batch, c latent channels, d width, n tokens in (t h w) order, l caption tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

SINUSOIDS = 256  # width of the timestep sinusoids (DiT, arXiv 2212.09748)
MAX_PERIOD = 10_000.0  # longest period of every sinusoid here (Attention Is All You Need, 3.5)


def timestep_sinusoids(timestep: Tensor) -> Tensor:
    """Return float32 ``[b 256]`` sinusoids of ``timestep [b]``, the cosines in the first half.

    The timestep stays a float: searched schedules sample between the 1000 training levels.
    """
    half = SINUSOIDS // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * exponent)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


class TimestepMLP(nn.Module):
    """Linear, SiLU, Linear on the sinusoids."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(SINUSOIDS, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, sinusoids: Tensor) -> Tensor:
        return cast(Tensor, self.linear_2(F.silu(self.linear_1(sinusoids))))


class TimestepModulation(nn.Module):
    """adaLN-single (PixArt-alpha, arXiv 2310.00426): six modulations shared by all blocks.

    ``forward(timestep [b], dtype)`` returns ``(modulation [b 6 d], embedded [b d])``: the first
    is what every block adds its own table to, the second (before the SiLU) what the output
    layer adds its table to.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # The released state dict names this level "emb".
        self.emb = nn.ModuleDict({"timestep_embedder": TimestepMLP(width)})
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, timestep: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        embedded = self.emb["timestep_embedder"](timestep_sinusoids(timestep).to(dtype))
        modulation = rearrange(self.linear(F.silu(embedded)), "b (six d) -> b six d", six=6)
        return modulation, embedded


@dataclass(frozen=True, eq=False)
class TimestepContext:
    """One timestep of a schedule, for all videos and guidance branches.

    What the transformer makes of the schedule's timesteps ``[n]`` it makes in one go, at its first
    call: rows of one matrix product, whose last bits may depend on the schedule, but not on batch,
    prompt or ranks.
    """

    timesteps: Sequence[float]
    index: int
    _made: dict[str, tuple[Tensor, Tensor]]  # shared by the contexts of a schedule

    @classmethod
    def of_schedule(cls, timesteps: Sequence[float]) -> tuple[TimestepContext, ...]:
        """A context for each timestep."""
        made: dict[str, tuple[Tensor, Tensor]] = {}
        return tuple(cls(timesteps, index, made) for index in range(len(timesteps)))

    @torch.compiler.disable  # type: ignore[untyped-decorator] # made once, not compiled anew
    def modulate(
        self, modulation: TimestepModulation, dtype: torch.dtype, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """What :class:`TimestepModulation` makes of this timestep alone, b = 1."""
        if "all" not in self._made:
            times = torch.tensor(self.timesteps, dtype=torch.float32, device=device)
            self._made["all"] = modulation(times, dtype)
        six, embedded = self._made["all"]
        return six[self.index : self.index + 1], embedded[self.index : self.index + 1]


class CaptionProjection(nn.Module):
    """Linear, tanh-GELU, Linear from text encoder states ``[b l c]`` to ``[b l d]``."""

    def __init__(self, caption_channels: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(caption_channels, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, caption: Tensor) -> Tensor:
        return cast(Tensor, self.linear_2(F.gelu(self.linear_1(caption), approximate="tanh")))


class PatchEmbedding(nn.Module):
    """One strided Conv2d per latent frame: ``[b c t h w]`` to tokens ``[b n d]``."""

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, latents: Tensor) -> Tensor:
        frames = self.proj(rearrange(latents, "b c t h w -> (b t) c h w"))
        tokens: Tensor = rearrange(frames, "(b t) d h w -> b (t h w) d", b=latents.shape[0])
        return tokens


def _axis_sinusoids(positions: Tensor, width: int) -> Tensor:
    """Return float64 ``[n width]`` sinusoids of ``positions [n]``, the sines in the first half."""
    half = width // 2
    exponent = torch.arange(half, dtype=torch.float64) / half
    angles = positions[:, None] * MAX_PERIOD**-exponent
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


def interpolation_scales(
    given: tuple[float | None, float | None, float | None],
    sample_size_t: int,
    sample_size: tuple[int, int],
) -> tuple[float, float, float]:
    """Scales of the axes (t, h, w) as given; where None, those that upstream takes.

    They are the latent size the model was configured for over upstream's base size: 16 frames
    (for odd counts rounded up, without the first frame), 30 rows, 40 columns.
    """
    odd, (height, width) = sample_size_t % 2 == 1, sample_size
    derived = (
        (sample_size_t - 1) // 16 + 1 if odd else sample_size_t / 16,
        height / 30,
        width / 40,
    )
    t, h, w = (own if scale is None else scale for scale, own in zip(given, derived, strict=True))
    return t, h, w


def absolute_positions(
    grid: tuple[int, int, int],
    base_grid: tuple[int, int, int],
    interpolation_scale: tuple[float, float, float],
    width: int,
) -> Tensor:
    """Return the float32 ``[t h*w d]`` position table of models without rotary embedding.

    Each axis is stretched to ``base_grid``, the token grid the model was configured for, so a
    latent of another size covers the same range of positions. Spatial features hold the w axis
    in the first half and the h axis in the second; the temporal table is added to both.
    """
    axes = [
        torch.arange(size, dtype=torch.float64) * base / size / scale
        for size, base, scale in zip(grid, base_grid, interpolation_scale, strict=True)
    ]
    time = _axis_sinusoids(axes[0], width)
    rows, columns = (_axis_sinusoids(axis, width // 2) for axis in axes[1:])
    _, h, w = grid
    spatial = torch.cat((columns[None].expand(h, w, -1), rows[:, None].expand(h, w, -1)), dim=-1)
    # Rounded to float32 one by one before the sum, as the reference's two tables are.
    return rearrange(spatial, "h w d -> (h w) d").float() + time.float()[:, None]
