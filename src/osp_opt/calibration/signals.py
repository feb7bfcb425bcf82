"""What other people's caches decide by, of pairs of noise levels. No torch.

MagCache (Ma et al. 2025, arXiv 2506.09045) goes by how much longer or shorter the residual of all
blocks became, TeaCache (Liu et al. 2024, arXiv 2411.19108) by the relative L1 change of the first
block's modulated input, which a polynomial turns into that of the output.

Suffixes: P videos, R guidance branches, K levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from osp_opt.base.errors import CalibrationError

__all__ = ["CacheSignals"]


@dataclass(frozen=True)
class CacheSignals:
    """Entry [k, j] compares level k with level j; both as sampled, the noisiest first.

    residual_ratio: [P, R, K, K] mean over tokens of |r_k| / |r_j|, with r the output of the last
        block less the input of the first; branches in the order negative, positive.
    input_change: [P, K, K] mean |m_k - m_j| / mean |m_j| over both branches, m the first block's
        normed and modulated input; NaN where the model does not tell it.
    output_change: [P, K, K] the same of the last block's output.
    """

    residual_ratio: np.ndarray
    input_change: np.ndarray
    output_change: np.ndarray

    def check(self, videos: int, levels: int) -> None:
        """Raise CalibrationError where shapes do not fit, or values cannot be."""
        square = (videos, levels, levels)
        shapes = (self.input_change.shape, self.output_change.shape)
        ratio = self.residual_ratio
        if (
            shapes != (square, square)
            or ratio.ndim != 4
            or (len(ratio), *ratio.shape[2:]) != square
        ):
            raise CalibrationError(
                f"calibration: signals are {list(ratio.shape)} and {[list(s) for s in shapes]}; "
                f"expected {list(square)} and one of each guidance branch"
            )
        if ratio.shape[1] not in (1, 2) or not np.all(np.isfinite(ratio)) or np.any(ratio < 0):
            raise CalibrationError(
                "calibration: ratios of residuals must be finite, of 1 or 2 branches"
            )
        if np.any(self.input_change < 0) or not np.all(self.output_change >= 0):
            raise CalibrationError("calibration: changes of signals must not be negative")

    @classmethod
    def join(cls, parts: Sequence[CacheSignals]) -> CacheSignals:
        """The videos of all parts, in order."""
        return cls(
            np.concatenate([part.residual_ratio for part in parts]),
            np.concatenate([part.input_change for part in parts]),
            np.concatenate([part.output_change for part in parts]),
        )
