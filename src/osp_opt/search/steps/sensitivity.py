"""How much an error at each noise level matters at the end: measured, not assumed.

The pathwise cost divides the error of a step that ends at level s by (s^2 + c)^p, which says how
much of it survives. What c and p are is the model's business: on a bundled checkpoint errors
counted almost equally up to s = 3, where the Gaussian model lets them fade from s = 0.5 on. A race
measures the final error of a handful of different schedules anyway; those few numbers tell the
pairs (c, p) apart, and all pairs that explain them, weighted by how well, make one additive cost
again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from osp_opt.quality.metrics import log_error
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.candidates import StepTable
from osp_opt.search.steps.objectives import StepObjective

__all__ = ["MeasuredObjective", "fit_sensitivity"]

_CS = (0.1, 0.5, 2.0, 10.0, 50.0)  # noise variance up to which errors count alike
_PS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # how fast they fade beyond
_SPREAD = 0.2  # of measured log errors around what a right pair predicts


@dataclass(frozen=True)
class MeasuredObjective:
    """A weighted sum of pathwise (or deterministic) costs, the best explanation first; as
    `StepObjective` otherwise.
    """

    parts: tuple[tuple[StepObjective, float], ...]

    def __call__(self, changes_KK: np.ndarray, sigmas_K: np.ndarray) -> np.ndarray:
        costs = [weight * part(changes_KK, sigmas_K) for part, weight in self.parts]
        total: np.ndarray = np.sum(costs, axis=0)
        return total

    @property
    def label(self) -> str:
        """Short text for tables."""
        return "measured sensitivity"

    @property
    def follows_reference(self) -> bool:
        """As its parts: what is measured is the distance to the full-length run."""
        return True

    def heaviest(self) -> StepObjective:
        """The part that explained the measurements best: the first."""
        return self.parts[0][0]


def fit_sensitivity(
    table: StepTable,
    schedules: Sequence[TimestepSchedule],
    errors: Sequence[float],
    name: str = "pathwise",
) -> MeasuredObjective:
    """The cost that explains the measured final `errors` (mean squared) of `schedules`.

    Logarithms are compared, centred, because their common part belongs to the prompt. Every pair
    (c, p) counts by exp(-(residual / spread)^2 / 2 per schedule); each cost is taken relative to
    the schedules' own mean, so that its unit does not matter.
    """
    measured = _centred(log_error(errors))
    found: list[tuple[StepObjective, float, float]] = []
    for c, p in product(_CS, _PS):
        if p == 0.0 and c != _CS[0]:
            continue  # c has no meaning without a power
        objective = StepObjective(name, c, p)
        predicted = np.log(table.mean_costs(schedules, objective))
        residual = measured - _centred(predicted)
        misfit = float(np.sum((residual / _SPREAD) ** 2))
        found.append((objective, misfit, float(np.exp(predicted.mean()))))
    best = min(misfit for _, misfit, _ in found)
    parts = []
    for objective, misfit, scale in sorted(found, key=lambda part: part[1]):
        weight = float(np.exp(0.5 * (best - misfit)))
        if weight > 0.03:  # below a few hundredths of the best, a part only costs time
            parts.append((objective, weight / scale))
    return MeasuredObjective(tuple(parts))


def _centred(values: np.ndarray) -> np.ndarray:
    centred: np.ndarray = values - values.mean()
    return centred
