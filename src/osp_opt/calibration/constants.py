"""Constants that other people's caches need for a model: from what `calibrate` recorded.

MagCache wants the ratio of the residual's length from step to step, TeaCache a polynomial from the
change of its input to that of its output. Neither is recorded for every number of steps: between
the recorded levels both are interpolated, the ratios by their logarithm. Each is judged on prompts
that did not take part in it. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.ndimage import map_coordinates

from osp_opt.base.errors import CalibrationError
from osp_opt.calibration import Calibration
from osp_opt.calibration.signals import CacheSignals

__all__ = [
    "MagCacheRatios",
    "TeaCacheFit",
    "input_changes",
    "magcache_ratios",
    "teacache_coefficients",
]

DEGREE = 4
"""Of TeaCache's polynomial."""
FEWEST_STEPS = 8  # for a polynomial of degree 4 through the changes between them
GOOD_FIT = 0.8
"""Share of the variation explained below which a fit is called poor."""

Floats = npt.NDArray[np.float64]
Steps = int | Sequence[float]
"""So many even steps of the calibrated levels, or timesteps among them, descending."""


@dataclass(frozen=True)
class MagCacheRatios:
    """MagCache's `mag_ratios` for a number of steps; the first is 1, as MagCache has it.

    mean: for one call a step with both branches, and for runtimes with one list for both.
    branches: of each branch, in the order negative, positive; one alone without guidance.
    explained: share of the squared logarithm of the ratios of a prompt that the other prompts'
        mean explains; None with one prompt. typical_error: root mean square of what is left.
    """

    mean: tuple[float, ...]
    branches: tuple[tuple[float, ...], ...]
    explained: float | None
    typical_error: float | None

    def interleaved(self) -> list[float]:
        """Positive and negative in turn, step by step, as MagCache's code for Wan takes them."""
        return [float(r) for step in zip(*reversed(self.branches), strict=True) for r in step]


@dataclass(frozen=True)
class TeaCacheFit:
    """TeaCache's polynomial, highest power first, for a number of steps.

    explained: R2 on prompts left out of the fit; with one prompt, where `left_out` is False, of the
        fit itself. input_range: changes of the input for which it was fitted. lowest: the least
        value within it; below 0 TeaCache would count a change as negative.
    """

    coefficients: tuple[float, ...]
    explained: float
    left_out: bool
    input_range: tuple[float, float]
    lowest: float


def magcache_ratios(calibration: Calibration, steps: Steps) -> MagCacheRatios:
    """Mean over tokens of |r_k| / |r_(k-1)| between the steps of a run.

    Of the run as it was calibrated this is what ``MagCacheConfig(calibrate=True)`` of diffusers
    prints, averaged over prompts. Raises CalibrationError when nothing of the kind was recorded, or
    for more steps than were.
    """
    signals = _signals(calibration)
    pairs = _pairs(calibration, steps)
    ratio = signals.residual_ratio.astype(np.float64)
    logs = np.stack(
        [
            [_between(np.log(np.maximum(square, 1e-12)), pairs) for square in video]
            for video in ratio
        ]
    )  # [P, R, steps - 1]
    means = np.log(np.exp(logs).mean(1))  # [P, steps - 1], over branches
    left = None
    if len(means) > 1:
        others = (means.sum(0) - means) / (len(means) - 1)
        left = means - others
    explained = None if left is None else 1.0 - float((left**2).sum() / (means**2).sum())
    return MagCacheRatios(
        _with_first(np.exp(means).mean(0)),
        tuple(_with_first(branch) for branch in np.exp(logs).mean(0)),
        explained,
        None if left is None else float(np.sqrt((left**2).mean())),
    )


def teacache_coefficients(calibration: Calibration, steps: Steps) -> TeaCacheFit:
    """The polynomial of degree 4 from the relative L1 change of the input to that of the output.

    Input is the first block's modulated input, output the last block's, of a run, all prompts
    together. Raises CalibrationError when nothing of the kind was recorded, for more steps than
    were, or for too few to fit.
    """
    x = input_changes(calibration, steps)
    if x.shape[1] + 1 < FEWEST_STEPS:
        raise CalibrationError(
            f"{x.shape[1] + 1} steps are too few for a polynomial of degree {DEGREE}; "
            f"use {FEWEST_STEPS} or more"
        )
    y = _changes(_signals(calibration).output_change, _pairs(calibration, steps))
    coefficients = _polynomial(x, y)
    predicted = np.polyval(coefficients, x)
    if len(x) > 1:
        for left in range(len(x)):
            rest = np.arange(len(x)) != left
            predicted[left] = np.polyval(_polynomial(x[rest], y[rest]), x[left])
    spread = float(((y - y.mean()) ** 2).sum())
    low, high = float(x.min()), float(x.max())
    return TeaCacheFit(
        tuple(float(c) for c in coefficients),
        1.0 - float(((y - predicted) ** 2).sum()) / max(spread, 1e-300),
        len(x) > 1,
        (low, high),
        float(np.polyval(coefficients, np.linspace(low, high, 257)).min()),
    )


def input_changes(calibration: Calibration, steps: Steps) -> Floats:
    """Relative L1 change of the first block's modulated input from step to step, [P, steps - 1].

    Raises CalibrationError when it was not recorded, or for more steps than were.
    """
    signals = _signals(calibration)
    if not np.all(np.isfinite(signals.input_change)):
        raise CalibrationError(
            "this calibration does not hold the first block's modulated input; TeaCache has no "
            "coefficients for such a model"
        )
    return _changes(signals.input_change, _pairs(calibration, steps))


def _polynomial(x: Floats, y: Floats) -> Floats:
    """Coefficients of the best fit, highest power first; well conditioned by a scaled domain."""
    fit = np.polynomial.Polynomial.fit(x.ravel(), y.ravel(), DEGREE).convert()
    ascending = np.zeros(DEGREE + 1)
    ascending[: len(fit.coef)] = fit.coef
    return ascending[::-1]


def _signals(calibration: Calibration) -> CacheSignals:
    if calibration.signals is None:
        raise CalibrationError(
            "this calibration was recorded without what MagCache and TeaCache go by; "
            "run osp-opt calibrate again"
        )
    return calibration.signals


def _pairs(calibration: Calibration, steps: Steps) -> Floats:
    """[2, steps - 1]: places, in recorded levels, of each step from the second on and of the one
    before it."""
    levels = len(calibration.timesteps)
    count = steps if isinstance(steps, int) else len(steps)
    if not 2 <= count <= levels:
        raise CalibrationError(
            f"{count} steps: the calibration recorded {levels} levels; "
            f"constants can be made for 2 to {levels} steps"
        )
    if isinstance(steps, int):
        places = np.linspace(0.0, levels - 1.0, steps)
    else:
        places = np.interp(steps, calibration.timesteps[::-1], np.arange(levels)[::-1])
    return np.stack([places[1:], places[:-1]])


def _changes(squares: np.ndarray, pairs: Floats) -> Floats:
    return np.stack([_between(square.astype(np.float64), pairs) for square in squares])


def _between(square: Floats, pairs: Floats) -> Floats:
    """Values at pairs of places between the entries of `square` [K, K], linear in both."""
    values: Floats = map_coordinates(square, pairs, order=1, mode="nearest")
    return values


def _with_first(ratios: Floats) -> tuple[float, ...]:
    return (1.0, *(float(f"{ratio:.6g}") for ratio in ratios))
