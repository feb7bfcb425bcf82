"""Which noise level a timestep is. No torch.

All formulas of the searches are in the variance-exploding (VE) scaling x = x0 + sigma eps. Models
differ in what their timesteps mean: those of a variance-preserving (VP) process are places in a
table of trained levels; those of flow matching are 1000 s, with x_s = (1 - s) x0 + s eps, which is
the VE level s / (1 - s).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from osp_opt.sampling.levels import FLOW_MAX, check_timesteps

__all__ = ["FLOW", "MAX_SIGMA", "NoiseScale"]

FloatArray = npt.NDArray[np.float64]

MAX_SIGMA = 1e6
"""Stands for pure noise (s = 1, abar = 0), whose VE level is infinite: 1 / sigma, the clock of
deterministic steps, is off by a millionth there."""


@dataclass(frozen=True, eq=False)  # arrays compare in a way of their own
class NoiseScale:
    """From timesteps to VE levels.

    table: sigma of the whole timesteps 0, 1, ..., ascending, linear in between, as diffusers'
        schedulers have it; None: flow matching.
    """

    table: FloatArray | None = None

    def __eq__(self, other: object) -> bool:
        """Whether both are the same levels."""
        if not isinstance(other, NoiseScale) or self.table is None or other.table is None:
            return isinstance(other, NoiseScale) and self.table is other.table
        return np.array_equal(self.table, other.table)

    def __hash__(self) -> int:
        return hash(None if self.table is None else (len(self.table), float(self.table[-1])))

    @classmethod
    def of_alphas(cls, alphas_cumprod: Sequence[float] | FloatArray) -> NoiseScale:
        """Of a VP process's cumulative products abar_t."""
        abar = np.asarray(alphas_cumprod, dtype=np.float64)
        with np.errstate(divide="ignore"):
            return cls(np.minimum(np.sqrt((1.0 - abar) / abar), MAX_SIGMA))

    @property
    def most(self) -> float:
        """The largest timestep."""
        return FLOW_MAX if self.table is None else float(len(self.table) - 1)

    def check(self, timesteps: Sequence[float]) -> None:
        """Raise ScheduleError for timesteps that are none of a schedule (see `check_timesteps`)."""
        check_timesteps(timesteps, self.most, flow=self.table is None)

    def sigmas(self, timesteps: Sequence[float] | FloatArray) -> FloatArray:
        """VE levels of timesteps within [0, most]."""
        t = np.asarray(timesteps, dtype=np.float64)
        if self.table is not None:
            return np.interp(t, np.arange(len(self.table)), self.table)
        s = t / FLOW_MAX
        with np.errstate(divide="ignore"):
            found: FloatArray = np.minimum(s / (1.0 - s), MAX_SIGMA)
        return found

    def position(self, sigmas: FloatArray) -> FloatArray:
        """A coordinate, ascending with the noise, in which predictions change evenly: between two
        recorded levels they are interpolated in it. log sigma; of flow matching s, which is finite
        at pure noise.
        """
        place: FloatArray = np.log(sigmas) if self.table is not None else sigmas / (1.0 + sigmas)
        return place

    def as_json(self) -> Any:
        """What `from_json` reads: "flow", or the table."""
        return "flow" if self.table is None else [float(f"{sigma:.9g}") for sigma in self.table]

    @classmethod
    def from_json(cls, value: Any) -> NoiseScale:
        """Raises ValueError for what is no scale."""
        if value == "flow":
            return FLOW
        numbers = isinstance(value, list) and len(value) > 1
        if not numbers or not all(isinstance(x, float) and math.isfinite(x) for x in value):
            raise ValueError("not a scale of noise levels")
        table = np.array(value)
        if table[0] < 0 or np.any(np.diff(table) <= 0):
            raise ValueError("the levels of a scale must ascend")
        return cls(table)


FLOW = NoiseScale()
"""Of flow matching; timesteps within (0, 1000]."""
