"""What can be measured on one generated clip, frame by frame, before anything is named.

Shape suffixes: t frames, h height, w width, c RGB in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from scipy import ndimage
from torch import Tensor

from osp_opt.tiny.shapes import BASE_SIZE, draw_shape, half_extent
from osp_opt.tiny.specs import SHAPES

# Neighbours of a pixel: the four beside it, in its own frame.
IN_FRAME = np.stack([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))])
NEAR = 0.27  # RGB distance taken as "the same colour": half the least palette distance
MIN_BORDER = 0.75  # of the border must be one colour: a legal shape covers at most 0.15 of it
AREA_RANGE = (0.04, 0.35)  # of the frame; legal shapes cover 0.10 to 0.18 of a square one
MIN_SINGLE = 0.88  # of everything that is not background must be one connected piece
MIN_OUTLINE = 0.60  # of that piece must have the shape's colour; the rest is a blurred edge
MIN_PLAIN = 0.80  # of the inside of the shape must be one colour
MAX_EDGE = 6.0  # units; width of the edge's ramp beyond which the clip counts as blurred


@dataclass(frozen=True)
class Frames:
    """Measurements per frame; NaN where the frame did not allow them.

    background [t c]: colour of the border, NaN when the border is not one colour.
    color [t c]: colour inside the shape, NaN when there is no single plain shape.
    center [t 2]: (x, y) centroid in units, NaN when there is no single shape.
    overlap [t k]: intersection over union with each of SHAPES at the same area and centroid.
    edge [t]: width of the shape's edge in units (1 is a crisp anti-aliased edge at 64 pixels).
    """

    background: np.ndarray
    color: np.ndarray
    center: np.ndarray
    overlap: np.ndarray
    edge: np.ndarray


def _dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """Grow a boolean mask [t h w] by a square of the given radius in pixels."""
    square = np.ones((1, 2 * radius + 1, 2 * radius + 1), dtype=bool)
    grown: np.ndarray = ndimage.binary_dilation(mask, square)
    return grown


def _erode(mask: np.ndarray, radius: int) -> np.ndarray:
    """Shrink a boolean mask [t h w]; outside the frame counts as inside the mask."""
    return ~_dilate(~mask, radius)


def largest_piece(mask: np.ndarray) -> np.ndarray:
    """The largest 4-connected piece of every frame of a boolean mask [t h w]."""
    label, _ = ndimage.label(mask, IN_FRAME)
    piece = np.zeros_like(mask)
    for i, frame in enumerate(label):
        counts = np.bincount(frame.ravel(), minlength=2)
        counts[0] = 0
        piece[i] = (frame == counts.argmax()) & mask[i]
    return piece


def _border_colors(video: np.ndarray, width: int) -> np.ndarray:
    """Median colour of each frame's border, `width` pixels wide: [t h w c] -> [t c].

    NaN where the border is not plain.
    """
    rim = np.ones(video.shape[1:3], dtype=bool)
    rim[width:-width, width:-width] = False
    border = video[:, rim]
    color = np.median(border, axis=1)
    plain = np.linalg.norm(border - color[:, None], axis=-1) < NEAR
    return np.where(plain.mean(axis=1)[:, None] >= MIN_BORDER, color, np.nan)


def measure(video: np.ndarray) -> Frames:
    """Measure a video [t h w c] with RGB in [0, 1]."""
    frames, height, width, _ = video.shape
    unit = min(height, width) / BASE_SIZE
    rim = max(1, round(2 * unit))
    background = _border_colors(video, rim)
    color = np.full((frames, 3), np.nan)
    center = np.full((frames, 2), np.nan)
    edge = np.full(frames, np.nan)

    # NaN compares false: a frame without a background has no foreground either.
    off = video - rearrange(background, "t c -> t 1 1 c")
    foreground = np.einsum("thwc,thwc->thw", off, off) > NEAR**2
    piece = largest_piece(foreground)
    core, around = _erode(piece, rim), _dilate(piece, rim)
    share = piece.sum(axis=(1, 2)) / np.maximum(foreground.sum(axis=(1, 2)), 1)

    solid = np.zeros((frames, height, width), dtype=bool)
    fronts: dict[int, np.ndarray] = {}
    xs, ys = np.arange(width) + 0.5, np.arange(height) + 0.5
    for i in range(frames):
        if share[i] < MIN_SINGLE or not core[i].any():
            continue
        fronts[i] = np.median(video[i][core[i]], axis=0)
        # How far each pixel is on the way from background to shape colour: its level 0.5 is the
        # outline, wherever a blur has smeared the edge to.
        axis = fronts[i] - background[i]
        cover = off[i] @ axis / max(float(axis @ axis), 1e-6)
        cover = np.where(around[i], cover.clip(0, 1), 0.0)
        outline = cover > 0.5
        area = outline.sum()
        legal = AREA_RANGE[0] <= area / min(height, width) ** 2 <= AREA_RANGE[1]
        if not legal or area < MIN_OUTLINE * piece[i].sum():
            continue
        solid[i] = outline
        center[i] = (outline.sum(0) @ xs / area / unit, outline.sum(1) @ ys / area / unit)
        ramp = ((cover > 0.2) & (cover < 0.8)).sum()
        edge[i] = ramp / (0.6 * 2 * np.sqrt(np.pi * area)) / unit
    inside = _erode(solid, rim)
    for i, front in fronts.items():
        apart = np.linalg.norm(video[i][inside[i]] - front, axis=1)
        if apart.size and (apart < NEAR).mean() >= MIN_PLAIN:
            color[i] = front
    return Frames(background, color, center, overlaps(torch.from_numpy(solid).float()), edge)


def overlaps(solid: Tensor) -> np.ndarray:
    """Intersection over union of masks [t h w] with each of SHAPES drawn at the mask's own area and
    centroid -> [t k], NaN where the mask is empty.
    """
    _, height, width = solid.shape
    area = solid.sum(dim=(1, 2))
    x = (solid.sum(dim=1) @ (torch.arange(width) + 0.5)) / area
    y = (solid.sum(dim=2) @ (torch.arange(height) + 0.5)) / area
    result = []
    for shape in SHAPES:
        half_w, half_h = half_extent(shape)
        # Area and centroid of the shape at radius 1; the triangle's centroid lies half_h / 3 below
        # the middle of its box.
        unit_area = {"circle": np.pi, "square": 4 * half_w * half_h}.get(shape, 2 * half_w * half_h)
        radius = (area / unit_area).sqrt()
        lift = radius * (half_h / 3 if shape == "triangle" else 0.0)
        template = draw_shape(shape, torch.stack([x, y - lift], dim=1), radius, height, width)
        common = torch.minimum(template, solid).sum(dim=(1, 2))
        result.append(common / torch.maximum(template, solid).sum(dim=(1, 2)))
    return torch.stack(result, dim=1).masked_fill(area[:, None] == 0, torch.nan).double().numpy()
