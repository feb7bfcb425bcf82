"""All clips there are, which of them train the bundled model, and its prompt files."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple
from pathlib import Path

from osp_opt.base.artifacts import atomic_write_text
from osp_opt.base.errors import InputError
from osp_opt.tiny.prompts import PROMPT_FOLDER
from osp_opt.tiny.specs import BACKGROUNDS, COLORS, MOTIONS, SHAPES, ClipSpec
from tools.train_tiny.captions import caption

SPLIT_SEED = 0
"""The seed of the split that the shipped weights were trained with."""

CALIBRATION_PROMPTS = 16
VERIFICATION_PROMPTS = 32
SAMPLE_PROMPTS = 4


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
        for pair in itertools.combinations(tuple(enumerate(astuple(spec))), 2)
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
        best = min(rest, key=lambda spec: sum(used.get(value, 0) ** 2 for value in astuple(spec)))
        rest.remove(best)
        chosen.append(best)
        for value in astuple(best):
            used[value] = used.get(value, 0) + 1
    return tuple(chosen)


def _calibration() -> tuple[str, ...]:
    train, _ = split_specs()
    return tuple(caption(spec) for spec in spread(train, CALIBRATION_PROMPTS, seed=1))


def _verification() -> tuple[str, ...]:
    _, held_out = split_specs()
    return tuple(caption(spec, 1) for spec in spread(held_out, VERIFICATION_PROMPTS, seed=2))


def _evaluation() -> tuple[str, ...]:
    _, held_out = split_specs()
    return tuple(caption(spec) for spec in spread(held_out, len(held_out), seed=3))


def _sample() -> tuple[str, ...]:
    return _evaluation()[:SAMPLE_PROMPTS]


PROMPT_SETS: dict[str, Callable[[], tuple[str, ...]]] = {
    "calibration": _calibration,
    "verification": _verification,
    "evaluation": _evaluation,
    "sample": _sample,
}


def write_prompts(folder: Path = PROMPT_FOLDER) -> None:
    """Write all bundled prompt files; the same bytes every time."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, prompts in PROMPT_SETS.items():
        atomic_write_text(folder / f"{name}.txt", "\n".join(prompts()) + "\n")
