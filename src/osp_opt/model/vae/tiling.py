"""Tiled encoding and decoding, so that a large video needs little memory.

Time is cut into chunks that share one frame (a later chunk drops its first output frame: the
causal convolutions see only its padding there). Each chunk is cut into overlapping squares in
space whose borders are blended linearly, first with the tile above, then with the one to the
left. Blending is in place, as in the official code: a tile blends against its neighbour's already
blended border, and weights are published for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from osp_opt.base.errors import OptionError

TileFunction = Callable[[Tensor], Tensor]
MapTiles = Callable[[TileFunction, Sequence[Tensor]], list[Tensor]]


def run_tiles(function: TileFunction, tiles: Sequence[Tensor]) -> list[Tensor]:
    """Run every tile here, one after the other."""
    return [function(tile) for tile in tiles]


@dataclass(frozen=True)
class Grid:
    """How one direction cuts its input: tiles and strides in input pixels, what is kept of a tile
    and blended into the next in output pixels.
    """

    frames: int
    size: int
    stride: int
    keep: int
    blend: int


@dataclass(frozen=True)
class Tiling:
    """Tile sizes: ``sample`` in pixels and frames of the video, ``latent`` in latent ones.

    The defaults are the official sampling scripts'; :meth:`small` is their ``--save_memory``.
    ``overlap`` is a part of a tile; neighbours overlap by the whole latent pixels that it covers,
    one more where it cuts one, so that input and output are cut in the same places.

    Raises OptionError for an overlap that leaves no whole latent pixel to go on by.
    """

    sample_size: int = 512
    latent_size: int = 64
    sample_frames: int = 29
    latent_frames: int = 8
    overlap: float = 0.125

    def __post_init__(self) -> None:
        if not 0.0 <= self.overlap <= self.largest_overlap:
            nearest = math.floor(1000 * self.largest_overlap) / 1000 if self.overlap > 0 else 0
            raise OptionError(
                f"--tile-overlap-factor {self.overlap:g}: tiles of {self.sample_size} pixels "
                f"overlap by 0 to {nearest:g} of their size; use {nearest:g}"
            )

    @classmethod
    def small(cls, overlap: float = 0.125) -> Tiling:
        return cls(sample_size=256, latent_size=32, overlap=overlap)

    @property
    def largest_overlap(self) -> float:
        """With which neighbouring tiles are one latent pixel apart."""
        return 1.0 - 1.0 / self.latent_size

    @property
    def encode_grid(self) -> Grid:
        shared, scale = self.latent_size - self._stride, self._scale
        return Grid(
            self.sample_frames, self.sample_size, self._stride * scale, self._stride, shared
        )

    @property
    def decode_grid(self) -> Grid:
        shared, scale = self.latent_size - self._stride, self._scale
        return Grid(
            self.latent_frames, self.latent_size, self._stride, self._stride * scale, shared * scale
        )

    @property
    def _stride(self) -> int:
        """From one tile to the next, in latent pixels."""
        # What is a whole number but for rounding is one.
        return math.floor(round(self.latent_size * (1.0 - self.overlap), 6))

    @property
    def _scale(self) -> int:
        return self.sample_size // self.latent_size

    def splits_video(self, shape: Sequence[int]) -> bool:
        """Whether a video ``[b c t h w]`` of this shape is larger than one tile."""
        return shape[2] > self.sample_frames or max(shape[3:]) > self.sample_size

    def splits_latents(self, shape: Sequence[int]) -> bool:
        """Whether latents ``[b c t h w]`` of this shape are larger than one tile."""
        return shape[2] > self.latent_frames or max(shape[3:]) > self.latent_size


def tiled(
    x: Tensor, function: TileFunction, grid: Grid, map_tiles: MapTiles = run_tiles
) -> Iterator[Tensor]:
    """``function(x)`` computed tile by tile; ``x`` is ``[b c t h w]``. Comes in pieces of time, so
    that memory need not hold it whole.
    """
    for start in range(0, max(x.shape[2] - 1, 1), grid.frames - 1):
        piece = _tiled_in_space(x[:, :, start : start + grid.frames], function, grid, map_tiles)
        yield piece if start == 0 else piece[:, :, 1:]


def _tiled_in_space(x: Tensor, function: TileFunction, grid: Grid, map_tiles: MapTiles) -> Tensor:
    tops = range(0, x.shape[3], grid.stride)
    lefts = range(0, x.shape[4], grid.stride)
    size = grid.size
    results = map_tiles(
        function,
        [x[..., top : top + size, left : left + size] for top in tops for left in lefts],
    )
    keep = grid.keep
    rows: list[list[Tensor]] = []
    for i in range(len(tops)):
        row = results[i * len(lefts) : (i + 1) * len(lefts)]
        for j, tile in enumerate(row):
            if i > 0:
                _blend(rows[i - 1][j], tile, grid.blend, dim=3)
            if j > 0:
                _blend(row[j - 1], tile, grid.blend, dim=4)
        rows.append(row)
    return torch.cat(
        [torch.cat([tile[..., :keep, :keep] for tile in row], dim=4) for row in rows], dim=3
    )


def _blend(before: Tensor, tile: Tensor, extent: int, dim: int) -> None:
    """Fade from the end of ``before`` into the start of ``tile`` along ``dim``, in place."""
    extent = min(before.shape[dim], tile.shape[dim], extent)
    if extent == 0:
        return
    shape = [1] * tile.ndim
    shape[dim] = extent
    weight = (torch.arange(extent, dtype=torch.float32, device=tile.device) / extent).view(shape)
    head = tile.narrow(dim, 0, extent)
    tail = before.narrow(dim, before.shape[dim] - extent, extent)
    head.copy_(tail * (1 - weight) + head * weight)
