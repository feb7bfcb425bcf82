"""What a clip can be: the attribute values, all their combinations, and the train/held-out split.

No torch here: captions and prompt files are built from this alone.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
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

#: The seed of the split that the shipped weights were trained with.
SPLIT_SEED = 0


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

    def values(self) -> tuple[str, str, str, str]:
        """The four values in the order of ATTRIBUTES."""
        return (self.shape, self.color, self.background, self.motion)


def all_specs() -> tuple[ClipSpec, ...]:
    """All 3 x 6 x 4 x 5 = 360 combinations in a fixed order (shape slowest, motion fastest)."""
    return tuple(
        ClipSpec(*values) for values in itertools.product(SHAPES, COLORS, BACKGROUNDS, MOTIONS)
    )


def _pairs(specs: Iterable[ClipSpec]) -> set[tuple[tuple[int, str], ...]]:
    """Every pair of attribute values that occurs together in one of the specs."""
    return {
        pair
        for spec in specs
        for pair in itertools.combinations(tuple(enumerate(spec.values())), 2)
    }


def split_specs(seed: int = SPLIT_SEED) -> tuple[tuple[ClipSpec, ...], tuple[ClipSpec, ...]]:
    """Split the 360 combinations into (240 for training, 120 held out), the same for a seed always.

    For each of the 120 (colour, background, motion) triples exactly one of the three shapes is held
    out, each shape 40 times; draws are repeated until every pair of attribute values (a red
    triangle, a triangle moving up, ...) occurs in training, so that held-out prompts ask for new
    combinations and never for new words or new pairs.
    """
    rng = random.Random(seed)
    specs = all_specs()
    triples = list(itertools.product(COLORS, BACKGROUNDS, MOTIONS))
    while True:
        shapes = list(SHAPES) * (len(triples) // len(SHAPES))
        rng.shuffle(shapes)
        held = {ClipSpec(shape, *triple) for shape, triple in zip(shapes, triples, strict=True)}
        train = tuple(spec for spec in specs if spec not in held)
        if _pairs(train) == _pairs(specs):
            return train, tuple(spec for spec in specs if spec in held)


def spread(specs: Sequence[ClipSpec], count: int, seed: int) -> tuple[ClipSpec, ...]:
    """Choose `count` different specs in which every attribute value is used about equally often.

    Greedy: always the spec whose values were used least so far, ties in an order shuffled by seed.
    Any first few of the result are spread out too.
    """
    if count > len(specs):
        raise InputError(f"prompts: asked for {count} of {len(specs)} clips, ask for fewer")
    rest = list(specs)
    random.Random(seed).shuffle(rest)
    used: dict[str, int] = {}
    chosen: list[ClipSpec] = []
    while len(chosen) < count:
        best = min(rest, key=lambda spec: sum(used.get(value, 0) ** 2 for value in spec.values()))
        rest.remove(best)
        chosen.append(best)
        for value in best.values():
            used[value] = used.get(value, 0) + 1
    return tuple(chosen)
