"""Procedural captioned clips: one shape moving over a plain background.

Shape suffixes: b clips, c RGB, t frames, h height, w width. All lengths below are in units of
min(height, width) / 64 pixels, so that a clip looks the same at every size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from osp_opt.base.errors import ShapeError
from osp_opt.tiny.shapes import BASE_SIZE, TRAVEL, draw_shape, half_extent
from osp_opt.tiny.specs import BACKGROUNDS, COLORS, MOTIONS, ClipSpec

RADIUS_RANGE = (13.0, 15.0)  # units
MARGIN = 0.5  # units kept free between shape and frame
# Units that the middle of a path may lie off the middle of the frame. A shape that may be anywhere
# (infinity) leaves a noisy clip's expectation a blur in which no caption can be learned from.
JITTER = 4.0


@dataclass(frozen=True)
class ClipGeometry:
    """Where the shape is: `centers` [b t 2] as (x, y) in pixels, middle of the shape's bounding
    box; `radius` [b] in pixels. Pixel (i, j) covers [j, j+1) x [i, i+1).
    """

    centers: np.ndarray
    radius: np.ndarray


def draw_geometry(
    specs: Sequence[ClipSpec],
    rng: np.random.Generator,
    num_frames: int = 29,
    height: int = 64,
    width: int = 64,
    jitter: float = JITTER,
) -> ClipGeometry:
    """Draw size and path of every clip: constant speed, inside the frame from first to last.

    `jitter` (units) bounds how far the middle of the path lies off the middle of the frame.

    Raises ShapeError when there is no frame or the frame has no pixels.
    """
    if num_frames < 1 or height < 1 or width < 1:
        raise ShapeError(f"clip: found {num_frames}x{height}x{width}, give at least 1x1x1")
    unit = min(height, width) / BASE_SIZE
    time = np.linspace(-0.5, 0.5, num_frames) if num_frames > 1 else np.zeros(1)
    centers = np.empty((len(specs), num_frames, 2), dtype=np.float64)
    radius = np.empty(len(specs), dtype=np.float64)
    for i, spec in enumerate(specs):
        radius[i] = unit * rng.uniform(*RADIUS_RANGE)
        extents = half_extent(spec.shape)
        for axis, (size, extent) in enumerate(zip((width, height), extents, strict=True)):
            travel = unit * TRAVEL * MOTIONS[spec.motion][axis]
            slack = size / 2 - extent * radius[i] - abs(travel) / 2 - unit * MARGIN
            slack = min(slack, unit * jitter)
            middle = size / 2 + rng.uniform(-slack, slack)
            centers[i, :, axis] = middle + travel * time
    return ClipGeometry(centers, radius)


def render(
    specs: Sequence[ClipSpec], geometry: ClipGeometry, height: int = 64, width: int = 64
) -> Tensor:
    """Draw the clips at the given geometry -> float32 [b c t h w] in [-1, 1]."""
    num_frames = geometry.centers.shape[1]
    video = torch.empty(len(specs), 3, num_frames, height, width)
    for i, spec in enumerate(specs):
        centers = torch.from_numpy(geometry.centers[i]).float()
        radius = torch.full((num_frames,), float(geometry.radius[i]))
        cover = draw_shape(spec.shape, centers, radius, height, width)
        colors = zip(COLORS[spec.color], BACKGROUNDS[spec.background], strict=True)
        for channel, (front, back) in enumerate(colors):
            torch.mul(cover, 2 * (front - back), out=video[i, channel]).add_(2 * back - 1)
    return video


def render_clips(
    specs: Sequence[ClipSpec],
    rng: np.random.Generator,
    num_frames: int = 29,
    height: int = 64,
    width: int = 64,
) -> tuple[Tensor, ClipGeometry]:
    """Draw random geometry and render -> (float32 [b c t h w] in [-1, 1], the geometry drawn)."""
    geometry = draw_geometry(specs, rng, num_frames, height, width)
    return render(specs, geometry, height, width), geometry


def to_uint8(video: Tensor) -> Tensor:
    """[b c t h w] in [-1, 1] -> uint8 [b t h w c], truncated as the pipeline's own output is."""
    scaled = (video / 2 + 0.5).clamp(0, 1) * 255
    return rearrange(scaled, "b c t h w -> b t h w c").to(torch.uint8)
