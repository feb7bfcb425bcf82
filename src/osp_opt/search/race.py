"""Which schedule is really best: a race on sampled videos, under a budget of work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from osp_opt.base.errors import ScheduleError
from osp_opt.quality.intervals import Interval, mean_ci

__all__ = ["Pair", "RaceResult", "affordable_prompts", "bounded", "race_schedules"]

Pair = tuple[int, int]  # (candidate, prompt)
_CLIP = 1.5  # of a log ratio: what one video that tips over, or hardly errs at all, may count
PRIOR_PROMPTS = 4  # what a prediction is worth beside the measurements while the race runs
_SURE = 3  # prompts needed before "surely worse" means anything


@dataclass(frozen=True)
class RaceResult:
    """What was measured, and who is left.

    errors[c][p] is the error of candidate c on prompt p; `ranking` holds the candidates measured
    on every prompt of the race, the best first.
    """

    errors: dict[int, dict[int, float]]
    ranking: tuple[int, ...]
    spent: float

    @property
    def winner(self) -> int:
        """The best candidate."""
        return self.ranking[0]

    def against(self, candidate: int, other: int, level: float = 0.95) -> Interval:
        """Log of `candidate`'s error over `other`'s, mean over the prompts that both ran."""
        return mean_ci(self.log_ratios(candidate, other), level)

    def log_ratios(self, candidate: int, other: int) -> list[float]:
        """The logs of which `against` is the mean, one per prompt."""
        common = sorted(set(self.errors[candidate]) & set(self.errors[other]))
        ratios = [_log(self.errors[candidate][p]) - _log(self.errors[other][p]) for p in common]
        return [bounded(ratio) for ratio in ratios]


def affordable_prompts(costs: Sequence[float], baseline_cost: float, budget: float) -> int:
    """About how many prompts `race_schedules` will use; at least 1."""
    spent, prompts, alive = 0.0, 0, len(costs)
    while True:
        spent += baseline_cost + sum(sorted(costs)[:alive])
        if spent > budget and prompts:
            return prompts
        prompts += 1
        alive = max(2, math.ceil(alive / 2))


def race_schedules(
    costs: Sequence[float],
    baseline_cost: float,
    num_prompts: int,
    budget: float,
    measure: Callable[[list[Pair]], list[float]],
    pinned: int = 0,
    prior: Sequence[float] | None = None,
) -> RaceResult:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), one prompt a round.

    Errors count as logarithms of their ratio to the pinned candidate's on the same prompt, and
    within bounds, because one video that tips over into another would otherwise decide. From
    round to round the worse half is dropped, and whoever is surely worse than the best.

    Args:
        costs: work of sampling one video with each candidate.
        baseline_cost: work of sampling one video's reference, spent once per prompt.
        num_prompts: prompts there are.
        budget: bound on the work, in the unit of the costs; one round is always run.
        measure: errors (mean squared, against the reference) of (candidate, prompt) pairs.
        pinned: candidate that stays to the end; all are compared with it.
        prior: predicted log ratio of each candidate's error to the pinned one's, which counts as
            much as PRIOR_PROMPTS prompts.
    """
    if not costs or num_prompts < 1 or not 0 <= pinned < len(costs):
        raise ScheduleError("a race needs at least one candidate and one prompt")
    alive = list(range(len(costs)))
    errors: dict[int, dict[int, float]] = {c: {} for c in alive}
    spent = 0.0
    for prompt in range(num_prompts):
        cost = baseline_cost + sum(costs[c] for c in alive)
        if prompt and spent + cost > budget + 1e-9:
            break
        pairs = [(c, prompt) for c in alive]
        for (c, p), error in zip(pairs, measure(pairs), strict=True):
            errors[c][p] = error
        spent += cost
        scores = {
            c: _score(errors[c], errors[pinned], None if prior is None else prior[c]) for c in alive
        }
        if len(alive) > 2:
            alive = _survivors(alive, errors, scores, pinned)
    ranking = sorted(alive, key=lambda c: scores[c])
    return RaceResult(errors, tuple(ranking), spent)


def _survivors(
    alive: list[int],
    errors: dict[int, dict[int, float]],
    scores: dict[int, float],
    pinned: int,
) -> list[int]:
    ranked = sorted(alive, key=lambda c: scores[c])
    kept = ranked[: math.ceil(len(ranked) / 2)]
    best = kept[0]
    kept = [c for c in kept if c == best or not _surely_worse(errors[c], errors[best])]
    if kept == [pinned]:
        kept = ranked[:2]  # somebody has to challenge it
    return kept if pinned in kept else [*kept, pinned]


def _surely_worse(errors: dict[int, float], best: dict[int, float]) -> bool:
    common = sorted(set(errors) & set(best))
    if len(common) < _SURE:
        return False
    return mean_ci([_log(errors[p]) - _log(best[p]) for p in common]).low > 0


def _score(errors: dict[int, float], pinned: dict[int, float], prior: float | None = None) -> float:
    """Mean bounded log ratio to the pinned candidate's errors, with the prediction among them."""
    ratios = [_log(error) - _log(pinned[p]) for p, error in errors.items()]
    if prior is not None:
        ratios += [prior] * PRIOR_PROMPTS
    return float(np.mean(np.clip(ratios, -_CLIP, _CLIP)))


def bounded(log_ratio: float) -> float:
    """A log ratio of errors within what one video may count."""
    return min(max(log_ratio, -_CLIP), _CLIP)


def _log(error: float) -> float:
    return math.log(max(error, 1e-30))
