"""What a clip can be: the values of its attributes. No torch here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from osp_opt.base.errors import InputError

RGB = tuple[float, float, float]

SHAPES: tuple[str, ...] = ("circle", "square", "triangle")

#: Shape colours, RGB in [0, 1]. No two entries of COLORS and BACKGROUNDS together are closer than
#: 0.5 in Euclidean distance, so that a blurred reconstruction still has one nearest name.
COLORS: dict[str, RGB] = {
    "red": (0.90, 0.00, 0.05),
    "green": (0.00, 0.72, 0.10),
    "blue": (0.10, 0.15, 1.00),
    "yellow": (1.00, 1.00, 0.00),
    "cyan": (0.00, 0.92, 1.00),
    "magenta": (0.95, 0.00, 0.95),
}

#: Background colours, RGB in [0, 1].
BACKGROUNDS: dict[str, RGB] = {
    "black": (0.00, 0.00, 0.00),
    "white": (1.00, 1.00, 1.00),
    "gray": (0.50, 0.50, 0.50),
    "orange": (1.00, 0.50, 0.20),
}

#: Motions as (dx, dy) unit steps in image coordinates (y grows downwards).
MOTIONS: dict[str, tuple[int, int]] = {
    "still": (0, 0),
    "left": (-1, 0),
    "right": (1, 0),
    "up": (0, -1),
    "down": (0, 1),
}

ATTRIBUTES: tuple[str, ...] = ("shape", "color", "background", "motion")


@dataclass(frozen=True)
class ClipSpec:
    """One clip in words: a `color` `shape` with a `motion` over a plain `background`.

    Raises InputError when a value is not one of the known ones.
    """

    shape: str
    color: str
    background: str
    motion: str

    def __post_init__(self) -> None:
        legal: tuple[Iterable[str], ...] = (SHAPES, COLORS, BACKGROUNDS, MOTIONS)
        for attribute, known in zip(ATTRIBUTES, map(tuple, legal), strict=True):
            value = getattr(self, attribute)
            if value not in known:
                raise InputError(
                    f"clip {attribute}: found {value!r}, choose one of {', '.join(known)}"
                )
