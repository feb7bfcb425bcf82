"""Tiles of any overlap, put together: exact sizes, and the untiled result outside the blend."""

from __future__ import annotations

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from osp_opt.base.errors import OptionError
from osp_opt.model.vae.tiling import Grid, Tiling, run_tiles, tiled

SCALE = 4
OVERLAPS = [*(k / 8 for k in range(8)), 0.2, 0.3, 1 / 3, 0.45, 0.7]
LATENTS = [(1, 9, 8), (2, 8, 17), (3, 23, 16)]


def small(overlap: float) -> Tiling:
    return Tiling(8 * SCALE, 8, sample_frames=5, latent_frames=2, overlap=overlap)


def upsample(z: Tensor) -> Tensor:
    """What a decoder does to sizes, with no receptive field: the first frame becomes one, the
    others four.
    """
    big = z.repeat_interleave(SCALE, dim=3).repeat_interleave(SCALE, dim=4)
    return torch.cat([big[:, :, :1], big[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)


def downsample(x: Tensor) -> Tensor:
    """The inverse, of which a frame is every fourth."""
    return F.avg_pool3d(x[:, :, ::4], (1, SCALE, SCALE))


def together(x: Tensor, function: object, grid: Grid) -> Tensor:
    return torch.cat([*tiled(x, function, grid, run_tiles)], dim=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", LATENTS)
def test_every_overlap_gives_the_whole_back(size: tuple[int, int, int]) -> None:
    z = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    video = upsample(z)
    for overlap in OVERLAPS:
        tiling = small(overlap)
        torch.testing.assert_close(together(z, upsample, tiling.decode_grid), video)
        torch.testing.assert_close(together(video, downsample, tiling.encode_grid), z)


@pytest.mark.parametrize("size", LATENTS)
def test_what_sees_its_neighbours_differs_in_the_blend_alone(size: tuple[int, int, int]) -> None:
    z = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(1))
    blur = torch.ones(1, 1, 1, 3, 3) / 9.0

    def decode(z: Tensor) -> Tensor:
        return upsample(F.conv3d(z, blur, padding=(0, 1, 1)))

    video = decode(z)
    for overlap in OVERLAPS:
        grid = small(overlap).decode_grid
        if grid.blend < SCALE:
            continue  # less than the blur sees
        outside = torch.ones_like(video, dtype=torch.bool)
        for dim, length in ((3, size[1]), (4, size[2])):
            for start in range(grid.stride, length, grid.stride):
                zone = min(grid.blend, (length - start) * SCALE)
                outside.narrow(dim, start * SCALE, zone).fill_(False)
        found = together(z, decode, grid)
        assert found.shape == video.shape
        torch.testing.assert_close(found[outside], video[outside])


@pytest.mark.parametrize(("overlap", "save_memory"), [*product((0.125, 0.25), (False, True))])
def test_official_overlaps_are_cut_as_the_original_cuts(overlap: float, save_memory: bool) -> None:
    tiling = Tiling.small(overlap) if save_memory else Tiling(overlap=overlap)
    decode, encode = tiling.decode_grid, tiling.encode_grid
    sample, latent = tiling.sample_size, tiling.latent_size
    assert (decode.stride, encode.stride) == (int(latent * (1 - overlap)), sample * (1 - overlap))
    assert (decode.blend, encode.blend) == (int(sample * overlap), int(latent * overlap))
    assert (decode.keep, encode.keep) == (sample - decode.blend, latent - encode.blend)


@pytest.mark.parametrize("overlap", [0.99, 1.0, -0.1, float("nan")])
def test_an_overlap_that_leaves_nothing_to_go_on_by_is_refused(overlap: float) -> None:
    with pytest.raises(OptionError, match=r"--tile-overlap-factor .* use 0(\.984)?$"):
        Tiling(overlap=overlap)
