"""Recording, while sampling, of what MagCache and TeaCache decide by.

Of every level a few numbers are kept: the length of each kept token's residual, and a spread sample
of the first block's modulated input and of the last block's output. Pairs of levels are compared at
the end. Suffixes: K levels, R guidance branches, V videos of a batch, S kept tokens, D features, E
kept elements.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from scipy.spatial.distance import squareform
from torch import Tensor

from osp_opt.calibration.signals import CacheSignals
from osp_opt.calibration.subsample import spread_indices
from osp_opt.model.block import OpenSoraBlock

__all__ = ["SignalRecorder", "modulated_input"]

MAX_ELEMENTS = 1 << 12  # E, per branch: means of so many absolute values are known to about 1 %


class SignalRecorder:
    """Records `num_steps` levels of one video (or batch) of `branches` guidance branches.

    Memory on the model's device: K x R x (2 E + V S) numbers in the model's dtype (the lengths in
    float32); 100 levels of both branches in bfloat16: 4 MB.
    """

    def __init__(self, num_steps: int, branches: int) -> None:
        self._num_steps = num_steps
        self._branches = branches
        self.reset()

    def reset(self) -> None:
        """Forget everything, ready for another video."""
        self._lengths: dict[int, Tensor] = {}
        self._inputs: dict[int, Tensor] = {}
        self._outputs: dict[int, Tensor] = {}
        self._kept: Tensor | None = None

    def record_input(self, step: int, rows: slice, layer: Callable[..., Tensor], x: Tensor) -> None:
        """Keep the modulated input that the first `layer` makes of `x` [R' V, S, D], if told."""
        modulated = modulated_input(layer, x)
        if modulated is not None:
            self._keep(self._inputs, step, rows, modulated)

    def record_states(self, step: int, rows: slice, first: Tensor, last: Tensor) -> None:
        """Keep what tells the residual between two states [R', V, S, D], and the second itself."""
        lengths = torch.linalg.vector_norm(last.float() - first.float(), dim=-1).flatten(1)
        if step not in self._lengths:
            self._lengths[step] = lengths.new_empty(self._branches, lengths.shape[1])
        self._lengths[step][rows] = lengths
        self._keep(self._outputs, step, rows, last)

    def result(self) -> CacheSignals | None:
        """Every pair of levels, of one video (P = 1); None where the blocks did not run at all."""
        steps = range(self._num_steps)
        if any(step not in self._lengths for step in steps):
            return None
        lengths = torch.stack([self._lengths[k] for k in steps], dim=1).double().cpu()  # R K (V S)
        ratio = lengths @ (1.0 / (lengths + 1e-8)).mT / lengths.shape[2]
        told = all(step in self._inputs for step in steps)
        unknown = np.full((self._num_steps, self._num_steps), np.nan, dtype=np.float32)
        return CacheSignals(
            ratio.float().numpy()[None],
            (_changes([self._inputs[k] for k in steps]) if told else unknown)[None],
            _changes([self._outputs[k] for k in steps])[None],
        )

    def _keep(self, kept: dict[int, Tensor], step: int, rows: slice, x: Tensor) -> None:
        """A spread sample of the elements of `x`, whose rows of branches come first."""
        flat = x.detach().reshape(len(range(self._branches)[rows]), -1)
        if self._kept is None:
            picked = spread_indices(flat.shape[1], MAX_ELEMENTS)
            self._kept = torch.from_numpy(picked).to(flat.device)
        if step not in kept:
            kept[step] = flat.new_empty(self._branches, len(self._kept))
        kept[step][rows] = flat[:, self._kept]


def modulated_input(layer: Callable[..., Tensor], x: Tensor) -> Tensor | None:
    """What a block loop's `layer` makes of `x` first; None where the model does not tell."""
    if not isinstance(layer, partial) or not isinstance(layer.func, OpenSoraBlock):
        return None
    return layer.func.modulated_input(x, layer.keywords["modulation"])


def _changes(signals: list[Tensor]) -> np.ndarray:
    """[K, K] mean |s_k - s_j| / mean |s_j| of K signals [R, E]."""
    rows = torch.stack([signal.flatten() for signal in signals]).cpu().float()
    # Each pair once: fifteen times as fast as torch.cdist, which was a third of recording's cost.
    distances = torch.from_numpy(squareform(torch.pdist(rows, p=1.0).numpy()))
    change: np.ndarray = (distances / rows.abs().sum(1).clamp_min(1e-12)).numpy()
    return change
