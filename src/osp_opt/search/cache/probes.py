r"""How much an error at each step matters for the finished video: measured by probes.

A probe reuses all blocks at a few steps of one window and nowhere else. Its measured final error
over the recorded errors of those steps is the importance of the window,

    w = error / sum over the window's steps of E_{t,1},

and in between the logarithm is interpolated. The Gaussian weight of `step_importance` is off where
it matters: a real denoiser takes back most of an error at middle noise levels, so that the last
steps (except the very last, whose step is its own denoised prediction) weigh ten times more than
those. Windows are narrow there.

Suffixes: S steps, P videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from osp_opt.cache.policy import CachePolicy
from osp_opt.quality.metrics import LEAST_ERROR, log_error
from osp_opt.search.cache.scores import FloatArray, ReuseErrors

__all__ = ["Probe", "importance_probes", "measured_importance"]

_FROM_END = (1, 2, 3, 5, 8)  # single steps, counted from behind the last
_SHARES = (0.05, 0.3, 0.5, 0.7, 0.9)  # edges of the windows before these, of all steps


@dataclass(frozen=True)
class Probe:
    """Reuse of every block at `steps` only, each with the change one step old."""

    steps: tuple[int, ...]
    policy: CachePolicy

    @property
    def centre(self) -> float:
        """Where the window lies."""
        return float(np.mean(self.steps))


def importance_probes(errors: ReuseErrors) -> list[Probe]:
    """Probes from the first steps to the last, ascending; few where a video has few steps. None at
    a step that can reuse nothing of the one before.
    """
    num_steps, num_blocks = errors.num_steps, errors.num_blocks
    usable = np.isfinite(errors.table[0, :, 0, 0, -1])
    singles = sorted({num_steps - back for back in _FROM_END if num_steps - back >= 1})
    edges = [round(share * num_steps) for share in _SHARES]
    windows = [tuple(range(max(1, a), b, 2)) for a, b in pairwise(edges)]
    chosen = [w for w in windows if w and w[-1] < singles[0]] + [(step,) for step in singles]
    chosen = [kept for w in chosen if (kept := tuple(step for step in w if usable[step]))]
    return [
        Probe(
            steps,
            CachePolicy.explicit({step: [(0, num_blocks)] for step in steps}, num_steps),
        )
        for steps in chosen
    ]


def measured_importance(
    errors: ReuseErrors, probes: Sequence[Probe], measured: Sequence[float]
) -> FloatArray:
    """Importance of every step, [S], from the mean squared errors that the probes made."""
    recorded = np.exp(log_error(errors.table[:, :, 0, 0, -1]).mean(axis=0))  # [S]
    weights = [
        max(error, LEAST_ERROR) / max(float(recorded[list(probe.steps)].sum()), LEAST_ERROR)
        for probe, error in zip(probes, measured, strict=True)
    ]
    centres = [probe.centre for probe in probes]
    found: FloatArray = np.exp(np.interp(np.arange(errors.num_steps), centres, np.log(weights)))
    return found
