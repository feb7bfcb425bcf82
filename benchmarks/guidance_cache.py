"""The guidance cache of FasterCache (arXiv 2410.19355, "CFG-Cache"), from its description.

Where both guidance branches run, the difference of the negative branch's output from the positive
one's is kept, low and high spatial frequencies apart. At the steps between, the positive branch
runs alone, and the negative one is its output with those differences added: the low ones weighed up
in the early part of the video, the high ones in the late part. It sets in after a third of the
steps. Frequencies are low within a fifth of a frame's width around zero; the weight is 1.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.told import Told
from osp_opt.model.transformer import TextContext

__all__ = ["GuidanceCache"]

FIRST = 1 / 3  # of the steps run as ever
LOW_UNTIL = 1 / 2  # of the steps, where the weight goes over from low to high frequencies
WEIGHT = 1.1
LOW = 1 / 5  # of a frame's width


class GuidanceCache(Told):
    """A transformer for one video of `steps` steps; the negative branch runs at every
    `interval`-th of them. With a `weight` of 1 the whole difference is reused as it was.
    """

    def __init__(self, model: Any, steps: int, interval: int, weight: float = WEIGHT) -> None:
        super().__init__(model)
        self._steps = steps
        self._interval = interval
        self._weight = weight
        self._differences: tuple[Tensor, Tensor] | None = None  # low and high frequencies
        self._positive: TextContext | None = None

    def __call__(self, x: Tensor, timestep: Any, *, text: TextContext, **arguments: Any) -> Any:
        """Both branches' outputs, as the model's."""
        half = len(x) // 2
        since = self.step - round(FIRST * self._steps)
        if self._differences is None or since <= 0 or since % self._interval == 0:
            (output, *_) = self.model(x, timestep, text=text, **arguments)
            self._differences = _split(output[:half] - output[half:])
            return (output,)
        if self._positive is None:
            mask = None if text.mask is None else text.mask[half:]
            self._positive = TextContext(text.embeds[half:], mask)
        (positive, *_) = self.model(x[half:], timestep, text=self._positive, **arguments)
        early = self.step < LOW_UNTIL * self._steps
        weights = (self._weight, 1.0) if early else (1.0, self._weight)
        low, high = (w * part for w, part in zip(weights, self._differences, strict=True))
        return (torch.cat([positive + low + high, positive]),)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Low and high spatial frequencies of every frame [b c t h w]."""
    h, w = x.shape[-2:]
    spectrum = torch.fft.fft2(x.float())
    reach = max(1, round(LOW * min(h, w)))
    rows, columns = (torch.fft.fftfreq(n, 1 / n).abs() <= reach for n in (h, w))
    low = torch.fft.ifft2(spectrum * (rows[:, None] & columns).to(x.device)).real
    return low, x.float() - low
