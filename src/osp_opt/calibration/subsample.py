"""Which elements of a large tensor the recorder keeps."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["spread_indices"]

# The golden ratio's fractional part: its multiples fill [0, 1) as evenly as any sequence can.
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


def spread_indices(total: int, keep: int) -> np.ndarray:
    """`min(keep, total)` different indices in [0, total), ascending, the same at every call.

    They follow multiples of the golden ratio (a Kronecker sequence), so they are spread evenly
    over the whole range yet, unlike a fixed stride, never fall in step with the rows and frames
    of a (t h w) token order. A mean over them is an unweighted estimate of the mean over all
    elements: no bias towards a place, an error of about the elements' spread / sqrt(keep).
    """
    if keep >= total:
        return np.arange(total)
    picked: np.ndarray = np.unique((np.arange(1, keep + 1) * _GOLDEN % 1.0 * total).astype(int))
    free = np.setdiff1d(np.arange(total), picked, assume_unique=True)
    missing = keep - len(picked)  # two multiples fell on one index
    extra = free[np.linspace(0, len(free) - 1, missing).astype(int)] if missing else free[:0]
    return np.sort(np.concatenate([picked, extra]))
