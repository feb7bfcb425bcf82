r"""Additive costs of a sampling step, from the change table of a calibration.

Every cost here is a table ``cost[i, j]`` of stepping from level i to the cleaner level j > i with
one network evaluation, at i; a schedule costs the sum over its steps. Levels are in sampling
order (noisiest first), sigma descends. Input is always the *change table*
``C[k, j] = E || D_k - D_j ||^2`` (mean over latent elements), D_k the denoised prediction at level
k of one and the same noise path. Three properties make the sums meaningful:

* `klub`: Align Your Steps (Sabour et al. 2024, arXiv 2404.14507, section 3) bounds the KL
  divergence between the true reverse SDE and its discretisation by
  ``sum over steps of  int_{s_j}^{s_i} s^-3 E || D(x_s, s) - D(x_{s_i}, s_i) ||^2 ds``. What
  counts is the *distribution* of results.
* `pathwise`: in ``y = x / s^2`` the ancestral step adds ``D_i (1/s_j^2 - 1/s_i^2)`` plus noise that
  does not depend on D, so holding D at its first value is wrong by exactly
  ``s_j^2 sum_k u_k (D_k - D_i)``, ``u_k = 1/s_{k+1}^2 - 1/s_k^2``. What counts is staying close to
  *the same video*.
* `deterministic`: samplers of the probability-flow ODE (Euler, DPM-Solver, Heun, DDIM) integrate
  ``d(x/s) = D d(1/s)``, so the same with the clock ``1/s`` instead of ``1/s^2``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from osp_opt.base.errors import CalibrationError

__all__ = [
    "DEFAULT_C",
    "StepObjective",
    "changes_upto",
    "deterministic_cost",
    "klub_cost",
    "pathwise_cost",
    "refine_changes",
    "upper",
]

# About the standard deviation of scaled latents (unitless); 0.3 to 0.7 make little difference.
DEFAULT_C = 0.5


def klub_cost(changes_KK: np.ndarray, sigmas_K: np.ndarray, c: float = DEFAULT_C) -> np.ndarray:
    """AYS's bound with its early-stopped weight, [K, K]; infinite where j <= i.

    The weight ``s^-3 ds`` is the increment of ``-1/(2 s^2)``; it lets the low-noise end swallow
    the budget, because an error far below the spread of the data cannot be seen. AYS stops early,
    i.e. measures after adding noise of scale c, which makes it ``dW = d(-1 / (s^2 + c^2))`` (the
    constant factor 2 is dropped). The integral over a step is the trapezoid sum of C over the
    recorded levels in between, against the exact increments of W: with C continuous and zero at
    the step's start it is exact for C linear in W, and needs no derivative of C, which a
    martingale D does not have.
    """
    weight = -1.0 / (np.square(sigmas_K) + c * c)
    piece = 0.5 * (changes_KK[:, :-1] + changes_KK[:, 1:]) * -np.diff(weight)
    cost = np.zeros_like(changes_KK, dtype=np.float64)
    np.cumsum(np.triu(piece), axis=1, out=cost[:, 1:])
    return upper(cost)


def pathwise_cost(
    changes_KK: np.ndarray, sigmas_K: np.ndarray, c: float = DEFAULT_C, p: float = 0.5
) -> np.ndarray:
    """Squared error of an ancestral step's mean over ``(s_j^2 + c)^p``, [K, K].

    The divisor stands for how much of an error made at level j survives to the end.
    """
    error = _held_error(changes_KK, 1.0 / np.square(sigmas_K))
    return upper(error / (np.square(sigmas_K) + c) ** p)


def deterministic_cost(
    changes_KK: np.ndarray, sigmas_K: np.ndarray, c: float = DEFAULT_C, p: float = 0.5
) -> np.ndarray:
    """Squared error of a deterministic (Euler) step over ``(s_j^2 + c)^p``, [K, K].

    Why not KLUB: it bounds what holding D costs an SDE, whose later noise washes errors out; the
    probability-flow ODE carries every error to the end, in the clock 1/s. Why a first-order error
    for DPM-Solver++ and Heun: their steps correct for the same differences of D, so they err
    where those are large. On the Gaussian model, from the table that calibrate records, W2^2 of
    the schedules (p = 0 / KLUB, c = 0.5 / uniform; tests/helpers/gaussian_model.py):

        steps  Euler                  DPM-Solver++ (2M)
        10     .0154 / .0285 / .0253  .0022 / .0131 / .0486
        20     .0033 / .0086 / .0065  .0003 / .0040 / .0085
        50     .0006 / .0012 / .0011  .0001 / .0004 / .0006

    Recorded on a deterministic path D is smooth; on an ancestral one it carries the noise's own
    wandering, and this cost is then an upper estimate.
    """
    error = _held_error(changes_KK, 1.0 / sigmas_K)
    return upper(error / (np.square(sigmas_K) + c) ** p)


@dataclass(frozen=True)
class StepObjective:
    """A named cost: ``objective(changes, sigmas) -> cost``, with its parameters."""

    name: str
    c: float = DEFAULT_C
    p: float = 0.0

    def __call__(self, changes_KK: np.ndarray, sigmas_K: np.ndarray) -> np.ndarray:
        if self.name == "klub":
            return klub_cost(changes_KK, sigmas_K, self.c)
        tables: dict[str, Callable[..., np.ndarray]] = {
            "pathwise": pathwise_cost,
            "deterministic": deterministic_cost,
        }
        return tables[self.name](changes_KK, sigmas_K, self.c, self.p)

    @property
    def follows_reference(self) -> bool:
        """Whether it is the distance to the full-length run, whose own steps are no error."""
        return self.name != "klub"

    @property
    def label(self) -> str:
        """Short text for tables, e.g. ``pathwise(c=0.5,p=0.5)``."""
        power = "" if self.name == "klub" else f",p={self.p:g}"
        return f"{self.name}(c={self.c:g}{power})"


def refine_changes(
    changes: np.ndarray,
    sigmas_K: np.ndarray,
    new_sigmas_M: np.ndarray,
    position: Callable[[np.ndarray], np.ndarray] = np.log,
) -> np.ndarray:
    """The change table at other levels inside the recorded range, [..., M, M].

    C vanishes on its diagonal and has a kink there (D is close to a martingale: C grows like the
    distance, not its square), so it is interpolated on one side of the diagonal only: first in
    the cleaner level, then in the noisier one, each time with the zero at equal levels as a
    support point. Linear in `position` (of a NoiseScale; log sigma), of C itself where C grows
    like the distance, of its square root where it grows like the square (a smooth, deterministic
    path); the growth is read off the recorded table. Raises CalibrationError outside the recorded
    range.
    """
    old, new = position(sigmas_K), position(new_sigmas_M)
    slack = 1e-6
    if new.max() > old[0] + slack or new.min() < old[-1] - slack:
        raise CalibrationError(
            f"noise levels {new_sigmas_M.min():.4g} to {new_sigmas_M.max():.4g} reach outside the "
            f"recorded {sigmas_K[-1]:.4g} to {sigmas_K[0]:.4g}"
        )
    new = np.clip(new, old[-1], old[0])
    power = _growth(changes)
    root = np.maximum(changes, 0.0) ** (1.0 / power)
    left = np.clip(np.searchsorted(-old, -new, side="right") - 1, 0, len(old) - 2)
    part = (old[left] - new) / (old[left] - old[left + 1])  # [M], 0: at `left`

    # Cleaner level: from noisier recorded level k to new level m, [..., K, M]; in m's own cell
    # the support point left of m may be noisier than k, where only the zero at k itself is valid.
    cleaner = (1.0 - part) * root[..., left] + part * root[..., left + 1]
    # Noisier level n between recorded `left[n]` and `left[n] + 1`.
    above = cleaner[..., left, :]  # from recorded level left[n]
    below = cleaner[..., left + 1, :]  # from recorded level left[n] + 1, valid if m is cleaner
    blend = (1.0 - part)[:, None] * above + part[:, None] * below
    # In one cell: only `above` (level left[n]) is noisier than m, and at level m itself C is 0.
    same = left[:, None] == left[None, :]
    span = np.where(part[None, :] > 0, part[None, :], 1.0)
    inside = above * np.clip((part[None, :] - part[:, None]) / span, 0.0, 1.0)
    refined = np.where(same, inside, blend)
    order = new[:, None] > new[None, :]  # row noisier than column
    refined = np.where(order, refined, np.swapaxes(refined, -1, -2))
    refined = np.where(new[:, None] == new[None, :], 0.0, refined)
    result: np.ndarray = refined**power
    return result


def _growth(changes: np.ndarray) -> float:
    """How C grows with the distance of its levels: 1 (martingale) to 2 (smooth path)."""
    one = np.diagonal(changes, 1, axis1=-2, axis2=-1)[..., :-1]
    two = np.diagonal(changes, 2, axis1=-2, axis2=-1)
    valid = (one > 0) & (two > 0)
    if not valid.any():
        return 1.0
    return float(np.clip(np.median(np.log2(two[valid] / one[valid])), 1.0, 2.0))


def _held_error(changes_KK: np.ndarray, clock_K: np.ndarray) -> np.ndarray:
    """Mean square of ``(1 / clock_j) sum_{k=i}^{j-1} u_k (D_k - D_i)``, u the clock's increments.

    With D measured from the last level (any origin does, and this one is close to all of the
    levels whose u is large) the sum of products is a block of a two-dimensional prefix sum.
    """
    from_last = changes_KK[:, -1]
    gram = 0.5 * (from_last[:, None] + from_last[None, :] - changes_KK)
    u = np.diff(clock_K)
    k = len(clock_K)
    both = np.zeros((k, k))
    both[1:, 1:] = (u[:, None] * u[None, :] * gram[:-1, :-1]).cumsum(0).cumsum(1)
    own = np.diagonal(both)
    products = own[None, :] - both - both.T + own[:, None]  # [i, j]: sum over both in [i, j)
    cross = np.zeros((k, k))
    cross[:, 1:] = np.cumsum(np.triu(gram[:, :-1] * u), axis=1)  # [i, j]: sum of u_k <D_k, D_i>
    total = clock_K[None, :] - clock_K[:, None]
    error: np.ndarray = products - 2.0 * total * cross + total**2 * np.diagonal(gram)[:, None]
    scaled: np.ndarray = error.clip(0.0) / np.square(clock_K)[None, :]
    return scaled


def changes_upto(changes_KK: np.ndarray, clock_K: np.ndarray) -> np.ndarray:
    """[p, j]: sum over m < j of u_m |D_m - D_p|^2, u the clock's increments."""
    total = np.zeros_like(changes_KK, dtype=np.float64)
    np.cumsum(changes_KK[:, :-1] * np.diff(clock_K), axis=1, out=total[:, 1:])
    return total


def upper(cost_KK: np.ndarray) -> np.ndarray:
    """`cost_KK` with infinity on and below the diagonal (steps that do not go down)."""
    return np.where(np.triu(np.ones_like(cost_KK, dtype=bool), 1), cost_KK, np.inf)
