"""Which schedule is really best: a race on sampled videos, under a budget of work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from osp_opt.errors import ScheduleError
from osp_opt.search.trials import Interval, mean_ci

__all__ = ["Pair", "RaceResult", "affordable_prompts", "race_schedules"]

Pair = tuple[int, int]  # (candidate, prompt)
_SURE = 3  # prompts needed before "surely worse" means anything


@dataclass(frozen=True)
class RaceResult:
    """What was measured, and who is left.

    errors[c][p] is the error of candidate c on prompt p; `ranking` holds the candidates measured
    on every prompt of the race, the best (least mean log error) first.
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
        return [_log(self.errors[candidate][p]) - _log(self.errors[other][p]) for p in common]


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
) -> RaceResult:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), one prompt a round.

    Errors count as logarithms and in pairs on the same prompt, because one video that tips over
    into another would otherwise decide a mean. From round to round the worse half is dropped,
    and whoever is surely worse than the best.

    Args:
        costs: work of sampling one video with each candidate.
        baseline_cost: work of sampling one video's reference, spent once per prompt.
        num_prompts: prompts there are.
        budget: bound on the work, in the unit of the costs; one round is always run.
        measure: errors (mean squared, against the reference) of (candidate, prompt) pairs.
        pinned: candidate that stays to the end, for the comparison with the winner.
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
        if len(alive) > 2:
            alive = _survivors(alive, errors, pinned)
    ranking = sorted(alive, key=lambda c: _mean_log(errors[c]))
    return RaceResult(errors, tuple(ranking), spent)


def _survivors(alive: list[int], errors: dict[int, dict[int, float]], pinned: int) -> list[int]:
    ranked = sorted(alive, key=lambda c: _mean_log(errors[c]))
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


def _mean_log(errors: dict[int, float]) -> float:
    return float(np.mean([_log(error) for error in errors.values()]))


def _log(error: float) -> float:
    return math.log(max(error, 1e-30))
