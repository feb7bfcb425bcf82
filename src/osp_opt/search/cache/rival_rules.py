"""The rules of other people's caches, which reuse all blocks or none of a step.

Whoever follows such a rule makes a video in which some steps reused the change of the last step
that did not: a plan of our own, once it is known which steps. MagCache decides by its ratios alone,
TeaCache by what it sees of every video.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration import Calibration
from osp_opt.calibration.constants import input_changes, magcache_ratios, teacache_coefficients
from osp_opt.calibration.signal_recorder import modulated_input
from osp_opt.model.transformer import run_blocks

__all__ = ["MagCacheRule", "Rule", "TeaCacheRule", "rule_of"]

MAX_SKIPPED = 3  # steps in a row that MagCache reuses at most, by default (its K)
RETAINED = 0.2  # of the steps, the first ones, which MagCache computes by default

Make = Callable[[Any], object]
"""Makes a video with what supplies its block loops."""


class Rule(Protocol):
    """A cache whose threshold says how much it reuses."""

    name: str
    looks: bool  # whether what it reuses depends on the video

    def expected(self, threshold: float) -> CachePolicy:
        """What it reuses of a video, by what was recorded."""
        ...

    def of_video(self, threshold: float, make: Make) -> CachePolicy:
        """What it reuses of the video that `make` makes."""
        ...


def rule_of(
    name: str, calibration: Calibration, timesteps: Sequence[float], num_blocks: int
) -> Rule:
    """MagCache or TeaCache with the model's own constants for these steps.

    Raises CalibrationError where the calibration does not hold what they are made of.
    """
    if name == MagCacheRule.name:
        return MagCacheRule.calibrated(calibration, timesteps, num_blocks)
    return TeaCacheRule.calibrated(calibration, timesteps, num_blocks)


class MagCacheRule:
    """MagCache (Ma et al. 2025, arXiv 2506.09045) as diffusers runs it, with its defaults.

    A step is reused while the residual's length, multiplied up from its ratios, stays close to what
    it was when it was computed: the deviations may add up to the threshold.
    """

    name = "magcache"
    looks = False

    def __init__(self, ratios: Sequence[float], num_blocks: int) -> None:
        self._ratios = ratios
        self._num_blocks = num_blocks

    @classmethod
    def calibrated(
        cls, calibration: Calibration, timesteps: Sequence[float], num_blocks: int
    ) -> MagCacheRule:
        """With the ratios of these steps."""
        return cls(magcache_ratios(calibration, timesteps).mean, num_blocks)

    def expected(self, threshold: float) -> CachePolicy:
        """The plan: it is the same for every video."""
        steps = len(self._ratios)
        reused: list[int] = []
        length, deviation, skipped = 1.0, 0.0, 0
        for step in range(int(RETAINED * steps + 0.5), steps):
            length *= self._ratios[step]
            deviation += abs(1.0 - length)
            skipped += 1
            if step > 0 and deviation <= threshold and skipped <= MAX_SKIPPED:
                reused.append(step)
            else:
                length, deviation, skipped = 1.0, 0.0, 0
        return _plan(reused, steps, self._num_blocks)

    def of_video(self, threshold: float, make: Make) -> CachePolicy:
        """As expected."""
        return self.expected(threshold)


class TeaCacheRule:
    """TeaCache (Liu et al. 2024, arXiv 2411.19108), whose first and last step are computed.

    A polynomial tells from the change of the first block's modulated input how much the output
    changes; a step is reused until that has added up to the threshold.
    """

    name = "teacache"
    looks = True

    def __init__(
        self, coefficients: Sequence[float], changes: Sequence[float], num_blocks: int
    ) -> None:
        self._coefficients = coefficients
        self._changes = changes
        self._num_blocks = num_blocks

    @classmethod
    def calibrated(
        cls, calibration: Calibration, timesteps: Sequence[float], num_blocks: int
    ) -> TeaCacheRule:
        """With the polynomial of these steps; changes are the mean of the recorded videos."""
        coefficients = teacache_coefficients(calibration, timesteps).coefficients
        changes = input_changes(calibration, timesteps).mean(0)
        return cls(coefficients, changes.tolist(), num_blocks)

    def expected(self, threshold: float) -> CachePolicy:
        """The plan of a video whose input changes as the recorded ones' did."""
        decide = _Accumulated(self._coefficients, threshold, len(self._changes) + 1)
        steps = [0.0, *self._changes]
        reused = [step for step, change in enumerate(steps) if decide(step, change)]
        return _plan(reused, len(steps), self._num_blocks)

    def of_video(self, threshold: float, make: Make) -> CachePolicy:
        """The plan that TeaCache made while it made the video."""
        steps = len(self._changes) + 1
        loops = _TeaCacheLoops(_Accumulated(self._coefficients, threshold, steps))
        make(loops)
        return _plan(loops.reused, steps, self._num_blocks)


class _Accumulated:
    """Whether a step is reused: the predicted changes since the last computed one add up."""

    def __init__(self, coefficients: Sequence[float], threshold: float, num_steps: int) -> None:
        self._coefficients = coefficients
        self._threshold = threshold
        self._num_steps = num_steps
        self._sum = 0.0

    def __call__(self, step: int, change: float) -> bool:
        self._sum += float(np.polyval(self._coefficients, change))
        if step in (0, self._num_steps - 1) or self._sum >= self._threshold:
            self._sum = 0.0
            return False
        return True


class _TeaCacheLoops:
    """Supplies block loops by TeaCache's rule, and keeps which steps it reused.

    Where the guidance branches run in turn, the first one decides for both.
    """

    def __init__(self, decide: _Accumulated) -> None:
        self._decide = decide
        self.reset()

    def reset(self) -> None:
        """Forget everything, ready for a video."""
        self.reused: list[int] = []
        self._step = -1
        self._input: Tensor | None = None
        self._residuals: dict[str, Tensor] = {}

    def at(self, step: int, branch: str = "both") -> Any:
        """The block loop of `step`."""

        def loop(layers: Sequence[Callable[[Any], Any]], x: Tensor) -> Tensor:
            if step != self._step:
                self._look(step, modulated_input(layers[0], x))
            if step in self.reused:
                return x + self._residuals[branch]
            y = run_blocks(layers, x)
            self._residuals[branch] = y - x
            return y

        return loop

    def _look(self, step: int, seen: Tensor | None) -> None:
        """Decide for `step` by how much its input changed since the step before."""
        if seen is None:
            raise PolicyError("TeaCache goes by the first block's modulated input, untold here")
        change = 0.0
        if self._input is not None:
            difference = (seen.float() - self._input.float()).abs().mean()
            change = float(difference / self._input.float().abs().mean().clamp_min(1e-12))
        self._step, self._input = step, seen
        if self._decide(step, change):
            self.reused.append(step)


def _plan(reused: Sequence[int], num_steps: int, num_blocks: int) -> CachePolicy:
    return CachePolicy.explicit({step: [(0, num_blocks)] for step in reused}, num_steps)
