"""Procedural captioned clips: one shape moving over a plain background, drawn analytically.

Shape suffixes: b clips, c RGB, t frames, h height, w width. All lengths below are in units of
min(height, width) / 64 pixels, so that a clip looks the same at every size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from osp_opt.base.errors import ShapeError
from osp_opt.tiny.specs import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    MOTIONS,
    SHAPES,
    SPLIT_SEED,
    ClipSpec,
    all_specs,
    split_specs,
)

__all__ = [
    "ATTRIBUTES",
    "BACKGROUNDS",
    "COLORS",
    "MOTIONS",
    "SHAPES",
    "SPLIT_SEED",
    "ClipGeometry",
    "ClipSpec",
    "all_specs",
    "draw_geometry",
    "draw_shape",
    "half_extent",
    "render",
    "render_clips",
    "split_specs",
    "to_uint8",
]

BASE_SIZE = 64  # pixels; the size at which one unit is one pixel
RADIUS_RANGE = (13.0, 15.0)  # units
TRAVEL = 24.0  # units along the motion's axis over the whole clip
MARGIN = 0.5  # units kept free between shape and frame
# Units that the middle of a path may lie off the middle of the frame. A shape that may be anywhere
# (infinity) leaves a noisy clip's expectation a blur in which no caption can be learned from.
JITTER = 4.0

SQUARE_HALF_SIDE = 0.9  # of the radius: area 3.24 r^2, the circle's is 3.14 r^2
TRIANGLE_HALF_WIDTH = 1.2  # of the radius: area 2.52 r^2; wider would not leave room to travel
TRIANGLE_HALF_HEIGHT = 1.05  # of the radius; about equilateral, pointing up


@dataclass(frozen=True)
class ClipGeometry:
    """Where the shape is: `centers` [b t 2] as (x, y) in pixels, middle of the shape's bounding
    box; `radius` [b] in pixels. Pixel (i, j) covers [j, j+1) x [i, i+1).
    """

    centers: np.ndarray
    radius: np.ndarray


def half_extent(shape: str) -> tuple[float, float]:
    """Half width and half height of the shape's bounding box, as multiples of its radius."""
    if shape == "circle":
        return 1.0, 1.0
    if shape == "square":
        return SQUARE_HALF_SIDE, SQUARE_HALF_SIDE
    return TRIANGLE_HALF_WIDTH, TRIANGLE_HALF_HEIGHT


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


def draw_shape(shape: str, centers: Tensor, radius: Tensor, height: int, width: int) -> Tensor:
    """Coverage in [0, 1] of one shape at centers [t 2] (x, y) and radii [t], pixels -> [t h w].

    Analytic signed distance, one pixel of linear ramp at the edge (anti-aliasing).
    """
    x = torch.arange(width, dtype=torch.float32) + 0.5
    y = torch.arange(height, dtype=torch.float32) + 0.5
    dx = rearrange(x, "w -> 1 1 w") - rearrange(centers[:, 0], "t -> t 1 1")
    dy = rearrange(y, "h -> 1 h 1") - rearrange(centers[:, 1], "t -> t 1 1")
    radius = rearrange(radius, "t -> t 1 1")
    half_w, half_h = half_extent(shape)
    if shape == "circle":
        distance = (dx.square() + dy.square()).sqrt_() - radius
    elif shape == "square":
        distance = torch.maximum(dx.abs(), dy.abs()) - half_w * radius
    else:
        # Apex (0, -half_h r), base corners (+-half_w r, half_h r): both slanted sides are one line
        # in |dx|, with normal (2 half_h, -half_w).
        norm = math.hypot(2 * half_h, half_w)
        base = half_h * radius
        slant = dx.abs() * (2 * half_h / norm) - (dy + base) * (half_w / norm)
        distance = torch.maximum(slant, dy - base)
    return distance.neg_().add_(0.5).clamp_(0, 1)


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
