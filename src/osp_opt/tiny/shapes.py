"""The shapes of the bundled model's clips, drawn analytically.

Shape suffixes: t frames, h height, w width. Lengths below are in units of min(height, width) / 64
pixels, so that a clip looks the same at every size.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["BASE_SIZE", "TRAVEL", "draw_shape", "half_extent"]

BASE_SIZE = 64  # pixels; the size at which one unit is one pixel
TRAVEL = 24.0  # units along the motion's axis over the whole clip

SQUARE_HALF_SIDE = 0.9  # of the radius: area 3.24 r^2, the circle's is 3.14 r^2
TRIANGLE_HALF_WIDTH = 1.2  # of the radius: area 2.52 r^2; wider would not leave room to travel
TRIANGLE_HALF_HEIGHT = 1.05  # of the radius; about equilateral, pointing up


def half_extent(shape: str) -> tuple[float, float]:
    """Half width and half height of the shape's bounding box, as multiples of its radius."""
    if shape == "circle":
        return 1.0, 1.0
    if shape == "square":
        return SQUARE_HALF_SIDE, SQUARE_HALF_SIDE
    return TRIANGLE_HALF_WIDTH, TRIANGLE_HALF_HEIGHT


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
