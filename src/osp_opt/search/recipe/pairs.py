r"""The schedule of least additive cost for corrected deterministic steps, exactly.

What such a step from i to j costs depends on the level p before it, so the programme runs
over pairs of levels:

    V_n[p, i] = min over j of  cost[p, i, j] + V_{n-1}[i, j].

Suffixes: K levels, noisiest first; of a cost the level before, the level, the next one.
"""

from __future__ import annotations

import numpy as np

from osp_opt.base.errors import ScheduleError
from osp_opt.search.steps.objectives import changes_upto, deterministic_cost
from osp_opt.search.steps.programme import MIN_GAP

__all__ = ["PairProgramme", "corrected_cost"]


def corrected_cost(
    changes_KK: np.ndarray,
    sigmas_K: np.ndarray,
    weight: float,
    *,
    c: float = 0.5,
    power: float = 0.5,
) -> np.ndarray:
    """Squared error of holding D_i + f (D_i - D_p) from i to j over (s_j^2 + c)^power, [K, K, K].

    f = weight h_ij / (2 h_pi), h steps in log s; where p = i (the first step has none before it)
    the plain step's error. Infinite unless p <= i < j. With R the plain step's error it is

        |R|^2 - 2 f span <R, D_i - D_p> + f^2 span^2 |D_i - D_p|^2,

    all of it sums over the change table.
    """
    plain = deterministic_cost(changes_KK, sigmas_K, c, 0.0)
    clock = 1.0 / sigmas_K
    span = clock[None, :] - clock[:, None]  # [i, j]
    upto = changes_upto(changes_KK, clock)
    to_before = upto[:, None, :] - upto[:, :, None]  # [p, i, j]: over m in [i, j), against D_p
    to_own = upto - np.diagonal(upto)[:, None]  # [i, j]: against D_i
    moved = changes_KK[:, :, None]  # [p, i, .]
    along = 0.5 * (to_before - to_own - span * moved)  # <R, D_i - D_p>
    length = np.log(sigmas_K)[:, None] - np.log(sigmas_K)[None, :]
    before = np.where(length > 0.0, length, np.inf)[:, :, None]  # p = i: no correction
    scale = weight * length / (2.0 * before) * span
    correction = (scale**2 * moved - 2.0 * scale * along) / np.square(clock)
    error = (plain + correction).clip(0.0) / (np.square(sigmas_K) + c) ** power
    descends = np.triu(np.ones_like(span, dtype=bool))
    return np.where(descends[:, :, None], error, np.inf)


class PairProgramme:
    """The cheapest schedule of every number of steps, from level 0 to the last.

    `cost_KKK[i, i, j]` is that of a first step. Neighbours stay `min_gap` timesteps apart.
    """

    def __init__(
        self, cost_KKK: np.ndarray, timesteps_K: np.ndarray, min_gap: float = MIN_GAP
    ) -> None:
        near = timesteps_K[:, None] - timesteps_K[None, :] < min_gap - 1e-9
        self._cost = np.where(near[None], np.inf, cost_KKK)
        self._min_gap = min_gap
        k = len(timesteps_K)
        value = np.full((k, k), np.inf)
        value[:, -1] = 0.0
        self._values = [value]  # of so many steps from (before, level), the last level's first
        self._following: list[np.ndarray] = []  # the level behind it then

    def path(self, num_steps: int) -> tuple[int, ...]:
        """The indices of its levels. Raises ScheduleError where none has so many steps."""
        while len(self._values) < num_steps:
            total = self._cost + self._values[-1][None]
            following = total.argmin(axis=2)
            self._values.append(np.take_along_axis(total, following[:, :, None], 2)[:, :, 0])
            self._following.append(following.astype(np.int16))
        if not np.isfinite(self._values[num_steps - 1][0, 0]):
            raise ScheduleError(
                f"no schedule of {num_steps} steps on {len(self._cost)} levels {self._min_gap:g} "
                "apart"
            )
        path, before = [0], 0
        for choice in reversed(self._following[: num_steps - 1]):
            before, now = path[-1], int(choice[before, path[-1]])
            path.append(now)
        return tuple(path)
