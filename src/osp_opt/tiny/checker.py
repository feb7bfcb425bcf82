"""Reads shape, colour, background and motion off a video and compares them with its prompt.

The clips are procedural, so task quality is exact: an attribute is right when what is seen is what
was asked for. A value is only named when most frames agree on it and it is close to a legal one;
noise, blank frames, heavy blur, two shapes, or a shape that changes on the way read as None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from osp_opt.base.errors import InputError, ShapeError
from osp_opt.tiny.captions import parse
from osp_opt.tiny.measure import MAX_EDGE, Frames, measure
from osp_opt.tiny.shapes import TRAVEL
from osp_opt.tiny.specs import ATTRIBUTES, BACKGROUNDS, COLORS, MOTIONS, RGB, SHAPES, ClipSpec

MIN_AGREEMENT = 0.8  # of all frames must show the same value
MAX_BACKGROUND_DISTANCE = 0.27  # RGB; half the least distance between two backgrounds and colours
MAX_COLOR_DISTANCE = 0.40  # RGB; the shape colours are at least 0.9 apart
MIN_OVERLAP = 0.84  # mean intersection over union with the named shape
MIN_OVERLAP_MARGIN = 0.015  # ahead of the second best shape
MIN_TRAVEL = 0.5  # of the regular displacement makes it moving
MAX_STILL = 0.2  # of the regular displacement is still standing still
MAX_SIDEWAYS = 0.5  # displacement across the motion, of that along it
MIN_LINEARITY = 0.92  # correlation of position with time; a jump half-way reaches 0.87

Found = tuple[str | None, float]


@dataclass(frozen=True)
class Attribute:
    """One attribute: what was read (None: nothing that can be named), whether that is right, and
    how clear it was (`margin` in [0, 1], 0 when nothing was read; comparable within one attribute).
    """

    read: str | None
    right: bool
    margin: float


@dataclass(frozen=True)
class CheckResult:
    """What the checker saw, attribute by attribute; `all` is true when every one is right."""

    shape: Attribute
    color: Attribute
    background: Attribute
    motion: Attribute

    @property
    def all(self) -> bool:
        return all(getattr(self, name).right for name in ATTRIBUTES)

    def right(self) -> dict[str, bool]:
        """Right or wrong per attribute, and "all"."""
        return {name: getattr(self, name).right for name in ATTRIBUTES} | {"all": self.all}

    def __str__(self) -> str:
        seen = [getattr(self, name) for name in ATTRIBUTES]
        return ", ".join(
            f"{name} {item.read or '?'}{'' if item.right else ' (wrong)'}"
            for name, item in zip(ATTRIBUTES, seen, strict=True)
        )


def _agreed(names: Sequence[str | None]) -> str | None:
    """The name that MIN_AGREEMENT of all frames carry, if there is one."""
    name, count = Counter(names).most_common(1)[0]
    return name if count >= MIN_AGREEMENT * len(names) else None


def _name_colors(
    colors: np.ndarray, wanted: dict[str, RGB], others: dict[str, RGB], limit: float
) -> Found:
    """Name colours [t c] by the nearest of both palettes; only names in `wanted` within the limit
    count. Margin: (d2 - d1) / (d2 + d1) of the two nearest, averaged over frames.
    """
    palette = {**wanted, **others}
    names = list(palette)
    distance = np.linalg.norm(colors[:, None] - np.array(list(palette.values())), axis=-1)
    seen: list[str | None] = []
    margins: list[float] = []
    for row in distance:
        if np.isnan(row).any():
            seen.append(None)
            continue
        order = np.argsort(row)
        best, second = row[order[0]], row[order[1]]
        name = names[order[0]]
        seen.append(name if name in wanted and best <= limit else None)
        margins.append((second - best) / (second + best))
    agreed = _agreed(seen)
    return (agreed, float(np.mean(margins))) if agreed else (None, 0.0)


def _name_shape(frames: Frames) -> Found:
    """Name the shape by the best mean overlap; margin: best minus second best."""
    sharp = ~np.isnan(frames.overlap).any(axis=1) & (frames.edge <= MAX_EDGE)
    sharp &= ~np.isnan(frames.color).any(axis=1)
    seen = [
        SHAPES[int(np.argmax(row))] if ok else None
        for row, ok in zip(frames.overlap, sharp, strict=True)
    ]
    agreed = _agreed(seen)
    if agreed is None:
        return None, 0.0
    mean = frames.overlap[sharp].mean(axis=0)
    best = float(mean[SHAPES.index(agreed)])
    margin = best - float(np.delete(mean, SHAPES.index(agreed)).max())
    if best < MIN_OVERLAP or margin < MIN_OVERLAP_MARGIN:
        return None, 0.0
    return agreed, margin


def _name_motion(frames: Frames) -> Found:
    """Name the motion from the centroid's path, last third of the clip against the first.

    Margin: distance of the displacement from the nearest threshold, as part of the regular one.
    """
    count = len(frames.center)
    seen = ~np.isnan(frames.center).any(axis=1)
    third = max(1, count // 3)
    if count < 2 or seen.mean() < MIN_AGREEMENT or not (seen[:third].any() and seen[-third:].any()):
        return None, 0.0
    time, path = np.arange(count)[seen], frames.center[seen]
    first, last = time < third, time >= count - third
    elapsed = (time[last].mean() - time[first].mean()) / (count - 1)
    moved = (path[last].mean(axis=0) - path[first].mean(axis=0)) / (TRAVEL * elapsed)
    swing = np.ptp(path, axis=0).max() / TRAVEL
    distance = float(np.abs(moved).max())
    if distance <= MAX_STILL and swing <= 2 * MAX_STILL:
        return "still", MAX_STILL - distance
    axis = int(np.abs(moved).argmax())
    if distance < MIN_TRAVEL or abs(moved[1 - axis]) > MAX_SIDEWAYS * distance:
        return None, 0.0
    if abs(np.corrcoef(time, path[:, axis])[0, 1]) < MIN_LINEARITY:
        return None, 0.0
    for name, step in MOTIONS.items():
        if step[axis] == np.sign(moved[axis]):
            return name, min(1.0, distance - MIN_TRAVEL)
    raise AssertionError("every axis and sign has a motion")


def read_clip(video: Tensor | np.ndarray) -> dict[str, Found]:
    """Read a video uint8 [t h w c]: per attribute (value or None, margin).

    Raises ShapeError when it is not uint8 with three channels.
    """
    array = video.cpu().numpy() if isinstance(video, torch.Tensor) else np.asarray(video)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3:
        raise ShapeError(
            f"video: found {array.dtype} {array.shape}, give uint8 frames x height x width x 3"
        )
    frames = measure(array.astype(np.float32) / 255)
    return {
        "shape": _name_shape(frames),
        "color": _name_colors(frames.color, COLORS, BACKGROUNDS, MAX_COLOR_DISTANCE),
        "background": _name_colors(frames.background, BACKGROUNDS, COLORS, MAX_BACKGROUND_DISTANCE),
        "motion": _name_motion(frames),
    }


def check(video: Tensor | np.ndarray, prompt: ClipSpec | str) -> CheckResult:
    """Compare a video uint8 [t h w c] with the spec or caption that it was made from.

    Raises InputError when the caption does not say shape, colour, background and motion.
    """
    spec = parse(prompt) if isinstance(prompt, str) else prompt
    if spec is None:
        raise InputError(
            f"prompt: found {prompt!r}, the checker needs one shape, colour, background and motion"
        )
    found = read_clip(video)
    return CheckResult(
        **{
            name: Attribute(read, read == getattr(spec, name), margin)
            for name, (read, margin) in found.items()
        }
    )
