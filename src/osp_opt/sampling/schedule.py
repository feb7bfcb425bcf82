"""Timestep schedules and the noise levels behind them.

Conventions. Open-Sora-Plan v1.2 was trained with 1000 discrete steps of the variance-preserving
(VP) process x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, beta linear. Dividing by sqrt(abar_t)
gives the variance-exploding (VE) scaling x = x0 + sigma eps with sigma = sqrt((1 - abar) / abar),
in which all our own formulas are written. Timesteps are floats in [0, 999]; sigma is interpolated
linearly between the 1000 trained levels, as diffusers' Euler schedulers do.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import numpy.typing as npt

from osp_opt.base.artifacts import atomic_write_text, read_meta, setting_of
from osp_opt.base.errors import ScheduleError
from osp_opt.sampling.levels import MAX_TIMESTEP, check_corrections, read_fractions, same_timesteps
from osp_opt.sampling.noise_scale import FLOW, NoiseScale
from osp_opt.sampling.recipe import Recipe

if TYPE_CHECKING:
    import torch

FloatArray = npt.NDArray[np.float64]

NUM_TRAIN_TIMESTEPS = 1000
BETA_START = 1e-4  # beta of t = 0 (linear, dimensionless); default of diffusers' schedulers
BETA_END = 0.02  # beta of t = 999
_DIGITS = 12  # more than a float32 has


@cache
def alphas_cumprod() -> torch.Tensor:
    """Cumulative products abar_t [1000], float64 values of diffusers' float32 computation.

    The rounding of the float32 product is part of the trained convention (sigma_max = 157.407),
    so it is kept. Callers must not write into the shared tensor.
    """
    import torch  # not needed to read a schedule, nor by what only reads files

    betas = torch.linspace(BETA_START, BETA_END, NUM_TRAIN_TIMESTEPS, dtype=torch.float32)
    return torch.cumprod(1.0 - betas, dim=0).double()


@cache
def sigma_table() -> FloatArray:
    """sigma of the 1000 trained timesteps, ascending from 0.0100 to 157.4 (read-only array)."""
    abar = alphas_cumprod().numpy()
    table: FloatArray = np.sqrt((1.0 - abar) / abar)
    table.setflags(write=False)
    return table


@cache
def own_scale() -> NoiseScale:
    """Open-Sora-Plan's timesteps, as a scale."""
    return NoiseScale(sigma_table())


@overload
def sigma_of(timestep: float) -> float: ...
@overload
def sigma_of(timestep: FloatArray) -> FloatArray: ...
def sigma_of(timestep: float | FloatArray) -> float | FloatArray:
    """sigma at a timestep in [0, 999], linear between trained levels as in diffusers."""
    sigma = np.interp(timestep, np.arange(NUM_TRAIN_TIMESTEPS), sigma_table())
    return sigma if isinstance(timestep, np.ndarray) else float(sigma)


@overload
def timestep_of(sigma: float) -> float: ...
@overload
def timestep_of(sigma: FloatArray) -> FloatArray: ...
def timestep_of(sigma: float | FloatArray) -> float | FloatArray:
    """Inverse of `sigma_of`; levels outside the table map to its ends, 0 and 999."""
    timestep = np.interp(sigma, sigma_table(), np.arange(NUM_TRAIN_TIMESTEPS))
    return timestep if isinstance(sigma, np.ndarray) else float(timestep)


@dataclass(frozen=True)
class TimestepSchedule:
    """The timesteps at which a sampler evaluates the model, in sampling order (descending).

    `is_default` says that the schedule is the plain `uniform(n)`: a sampler with a spacing of its
    own (DDIM, PNDM, DPM-Solver, ...) then uses that spacing, as the original pipeline does. It
    takes no part in comparison.

    `corrections` weigh the two-step rule at each step (`steps.correction_factors`): 0 is the plain
    step, 1 the rule of DPM-Solver++ (2M), more makes up for a longer step before it. Empty, which
    all zeros become, means plain steps. Files of schedules do not hold them; recipes do.

    `scale` says which noise level a timestep is: Open-Sora-Plan's, unless the model is another
    one. It takes no part in comparison.

    Raises ScheduleError when a timestep is not finite, lies outside [0, 999], or does not descend,
    and when a correction is outside [0, 4] or at the first or last step, which can have none.
    """

    timesteps: tuple[float, ...]
    is_default: bool = field(default=False, compare=False)
    corrections: tuple[float, ...] = ()
    scale: NoiseScale = field(default_factory=own_scale, compare=False, repr=False)

    def __post_init__(self) -> None:
        self.scale.check(self.timesteps)
        if any(self.corrections):
            check_corrections(self.corrections, len(self.timesteps))
        else:
            object.__setattr__(self, "corrections", ())

    def corrected(self, weight: float) -> TimestepSchedule:
        """The same timesteps with `weight` as the correction of every step that can have one."""
        inner = (weight,) * (len(self.timesteps) - 2)
        return replace(self, corrections=(0.0, *inner, 0.0) if inner else ())

    @classmethod
    def uniform(cls, num_steps: int) -> TimestepSchedule:
        """`num_steps` evenly spaced timesteps from 999 to 0 (999 alone for one step)."""
        if num_steps < 1:
            raise ScheduleError(f"schedule: {num_steps} steps asked for; at least 1 is needed")
        # float32 because diffusers spaces its timesteps in float32
        spaced = np.linspace(0, MAX_TIMESTEP, num_steps, dtype=np.float32)[::-1]
        timesteps = (MAX_TIMESTEP,) if num_steps == 1 else tuple(float(t) for t in spaced)
        return cls(timesteps, is_default=True)

    @property
    def is_uniform(self) -> bool:
        """Whether it is the evenly spaced schedule of its length, for some also in whole steps.

        Of another model's, whether it is its scheduler's own spacing.
        """
        if self.scale != own_scale():
            return self.is_default
        even = TimestepSchedule.uniform(len(self.timesteps)).timesteps
        whole = self.timesteps == tuple(map(round, even))
        return whole or same_timesteps(self.timesteps, even)

    @classmethod
    def from_file(cls, path: str | Path, scale: NoiseScale | None = None) -> TimestepSchedule:
        """Read the reference tool's file: a JSON list, ascending, of timestep / 1000 in [0, 1).

        Of a flow-matching model's `scale` these are its levels s, which may be 1; by default it is
        the one that the file's sidecar names, else Open-Sora-Plan's. Raises FileError
        when the file is missing, too large or not JSON; ScheduleError when its content is not such
        a list.
        """
        scale = scale or _told_scale(path)
        fractions = read_fractions(path, scale.most)
        return cls(tuple(f * NUM_TRAIN_TIMESTEPS for f in reversed(fractions)), scale=scale)

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> TimestepSchedule:
        """The steps of a recipe, corrected as it says."""
        scale = own_scale() if recipe.levels is None else FLOW
        return cls(tuple(recipe.timesteps), corrections=tuple(recipe.corrections), scale=scale)

    def save(self, path: str | Path) -> None:
        """Write the reference tool's format: ascending timestep / 1000, JSON with indent 4.

        Of a timestep in float32, as diffusers spaces them, those digits are written that tell it
        from its neighbours.
        """
        fractions = [_shortest(t) for t in reversed(self.timesteps)]
        atomic_write_text(Path(path), json.dumps(fractions, indent=4))

    @property
    def sigmas(self) -> FloatArray:
        """Noise levels [n + 1] of the steps, descending, the last one 0."""
        return np.append(self.scale.sigmas(self.timesteps), 0.0)

    def __len__(self) -> int:
        return len(self.timesteps)


def _shortest(timestep: float) -> float:
    """The fraction that stands for a timestep; of fewest digits where that is in float32."""
    exact = timestep / NUM_TRAIN_TIMESTEPS
    if float(np.float32(timestep)) != timestep:
        return exact
    candidates = (float(f"{exact:.{digits}g}") for digits in range(1, _DIGITS))
    same = (f for f in candidates if float(np.float32(f * NUM_TRAIN_TIMESTEPS)) == timestep)
    return next(same, exact)


def _told_scale(path: str | Path) -> NoiseScale:
    """What the sidecar of a schedule file says of its timesteps."""
    levels = setting_of(read_meta(path)).get("levels")
    return FLOW if levels == FLOW.as_json() else own_scale()
