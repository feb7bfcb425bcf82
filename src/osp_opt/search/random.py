"""The random choices of the searches (those of videos are in sampling/noise.py)."""

from __future__ import annotations

import numpy as np

__all__ = ["search_rng"]


def search_rng(seed: int, *purpose: int | str) -> np.random.Generator:
    """The generator for one purpose of a search: every random choice of the searches is drawn
    from one of these, so it depends on the seed and the purpose, not on what ran before.
    """
    words = [seed & 0xFFFFFFFF]
    for part in purpose:
        words += [part & 0xFFFFFFFF] if isinstance(part, int) else list(part.encode())
    return np.random.default_rng(np.random.SeedSequence(words))
