r"""The reference tool's timestep search (FACTS section 3), as a baseline.

FACTS gives its shape (one sweep from left to right over the inner timesteps, 11 candidates each
between the neighbours, 5 Monte Carlo samples, two network evaluations per sample, hence
``(n - 2) * 11 * 5 * 2`` = 5280 at n = 50) and its faults (unconditional network, a wrong table of
noise levels, importance weights that are not normalised, frames in BGR within [0, 1]). The tool is
shipped as compiled binaries, so where FACTS does not say how a fault looks in formulas, this is our
reading, kept to what it names:

* the table: sqrt(1 - abar), the noise of the variance-preserving scaling, where the ratio
  sqrt((1 - abar) / abar) belongs;
* the weights: levels drawn evenly between the neighbouring timesteps and weighted by sigma^-3, the
  integrand of KLUB (Align Your Steps, arXiv 2404.14507), without the density they were drawn from
  and without division by the sum of weights.

On the exactly solvable Gaussian model its schedules are worse than uniform, as those of the real
tool are: DESIGN section 4 has .0619 / .0266 / .0098 for the tool at 10 / 20 / 50 steps against
.0526 / .0181 / .0041 of uniform, this one .077 / .026 / .007 (median of three seeds).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from osp_opt.sampling.noise import search_rng
from osp_opt.sampling.schedule import NUM_TRAIN_TIMESTEPS, TimestepSchedule, alphas_cumprod

__all__ = ["CANDIDATES", "ITERATIONS", "StepSearch", "network_evaluations", "wrong_sigma"]

CANDIDATES = 11
ITERATIONS = 5

Denoise = Callable[[Sequence[int], Sequence[float]], np.ndarray]
"""(videos, timesteps) -> denoised predictions [n ...], one network evaluation per entry."""


def network_evaluations(
    num_steps: int, candidates: int = CANDIDATES, iterations: int = ITERATIONS
) -> int:
    """What one search costs, besides the calibration videos."""
    return (num_steps - 2) * candidates * iterations * 2


def wrong_sigma(timestep: float) -> float:
    """The level the search believes in at a timestep in [0, 999]: sqrt(1 - abar)."""
    table = np.sqrt(1.0 - alphas_cumprod().numpy())
    return float(np.interp(timestep, np.arange(NUM_TRAIN_TIMESTEPS), table))


@dataclass(frozen=True)
class StepSearch:
    """One sweep over a uniform schedule.

    Args:
        denoise: the network on noised calibration videos.
        num_videos: calibration videos; sample m takes video m modulo this.
        candidates: tried per inner timestep.
        iterations: Monte Carlo samples per candidate.
        seed: of the sampled levels, drawn anew for every candidate.
    """

    denoise: Denoise
    num_videos: int
    candidates: int = CANDIDATES
    iterations: int = ITERATIONS
    seed: int = 0

    def search(self, num_steps: int) -> tuple[TimestepSchedule, int]:
        """The schedule found, and the network evaluations made."""
        current = np.linspace(0.0, NUM_TRAIN_TIMESTEPS - 1.0, num_steps)  # ascending, as its file
        made = 0
        for i in range(1, num_steps - 1):
            low, high = current[i - 1], current[i + 1]
            tried = np.linspace(low, high, self.candidates + 2)[1:-1]
            costs = []
            for k, middle in enumerate(tried):
                rng = search_rng(self.seed, "reference", num_steps, i, k)
                costs.append(self._cost(low, float(middle), high, rng))
                made += 2 * self.iterations
            current[i] = tried[int(np.argmin(costs))]
        return TimestepSchedule(tuple(float(t) for t in current[::-1])), made

    def _cost(self, low: float, middle: float, high: float, rng: np.random.Generator) -> float:
        """The estimate of both steps around `middle`, from levels between `low` and `high`."""
        levels = rng.uniform(low, high, self.iterations)
        # A step evaluates the network where it starts: at the next noisier of the timesteps.
        starts = np.where(levels <= middle, middle, high)
        videos = [m % self.num_videos for m in range(self.iterations)]
        at = self.denoise([*videos, *videos], [*levels.tolist(), *starts.tolist()])
        change = at[: self.iterations] - at[self.iterations :]
        errors = np.square(change).reshape(self.iterations, -1).mean(axis=1)
        weights = np.array([wrong_sigma(float(t)) ** -3 for t in levels])
        return float(np.sum(weights * errors))
