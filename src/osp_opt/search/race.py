"""Which candidate is really best: a race on sampled videos, under a budget of work."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from osp_opt.base.errors import OptionError
from osp_opt.quality.intervals import Interval, mean_ci
from osp_opt.quality.metrics import log_error

__all__ = ["Pair", "RaceResult", "affordable", "affordable_prompts", "race"]

Pair = tuple[int, int]  # (candidate, prompt)
_CLIP = 1.5  # of a log ratio: what one video that tips over, or hardly errs at all, may count
PRIOR_PROMPTS = 4  # what a prediction is worth beside the measurements while the race runs
FIRST_ROUND = 1 / 3  # of the budget, at most: the rest compares the best few on more prompts
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

    def against(self, candidate: int, other: int) -> Interval:
        """Log of `candidate`'s error over `other`'s, mean over the prompts that both ran."""
        return mean_ci(self.log_ratios(candidate, other))

    def log_ratios(self, candidate: int, other: int) -> list[float]:
        """The logs of which `against` is the mean, one per prompt, as measured."""
        common = sorted(set(self.errors[candidate]) & set(self.errors[other]))
        return [
            float(log_error(self.errors[candidate][p]) - log_error(self.errors[other][p]))
            for p in common
        ]


def affordable(costs: Sequence[float], budget: float) -> int:
    """How many candidates, the best-predicted first, a first round has room for; at least 1."""
    total = np.cumsum(costs)
    return max(1, int((total <= FIRST_ROUND * budget + 1e-9).sum()))


def affordable_prompts(costs: Sequence[float], baseline_cost: float, budget: float) -> int:
    """About how many prompts a race with a pinned candidate will use; at least 1."""
    spent, prompts, alive = 0.0, 0, len(costs)
    while True:
        spent += baseline_cost + sum(sorted(costs)[:alive])
        if spent > budget and prompts:
            return prompts
        prompts += 1
        alive = max(2, math.ceil(alive / 2))


def race(
    costs: Sequence[float],
    num_prompts: int,
    budget: float,
    measure: Callable[[list[Pair]], list[float]],
    *,
    baseline_cost: float = 0.0,
    pinned: int | None = None,
    prior: Sequence[float] | None = None,
) -> RaceResult:
    """Successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943), one prompt a round.

    Errors are compared as logarithms on the same prompt, and while they rank, within bounds,
    because one video that tips over into another would otherwise decide. From round to round the
    worse half is dropped, and whoever is surely worse than the best.

    Args:
        costs: work of sampling one video with each candidate.
        num_prompts: prompts there are.
        budget: bound on the work, in the unit of the costs; one round is always run.
        measure: errors (mean squared, against the reference) of (candidate, prompt) pairs.
        baseline_cost: work of sampling one video's reference, spent once per prompt.
        pinned: candidate that stays to the end, with whom the others are compared; without one
            the race ends when one candidate is left.
        prior: predicted log ratio of each candidate's error to the pinned one's, which counts as
            much as PRIOR_PROMPTS prompts.

    Raises OptionError where there is nothing to race.
    """
    if not costs or num_prompts < 1 or (pinned is not None and not 0 <= pinned < len(costs)):
        raise OptionError("a race needs at least one candidate and one prompt")
    fewest = 1 if pinned is None else 2
    alive = list(range(len(costs)))
    errors: dict[int, dict[int, float]] = {c: {} for c in alive}
    scores: dict[int, float] = {}
    spent = 0.0
    for prompt in range(num_prompts):
        cost = baseline_cost + sum(costs[c] for c in alive)
        over = spent + cost > budget + 1e-9
        if prompt and (over or (pinned is None and len(alive) == 1)):
            break
        pairs = [(c, prompt) for c in alive]
        for (c, p), error in zip(pairs, measure(pairs), strict=True):
            errors[c][p] = error
        spent += cost
        scores = _scores(alive, errors, pinned, prior)
        if len(alive) > fewest:
            alive = _survivors(alive, errors, scores, pinned)
    ranking = sorted(alive, key=lambda c: scores[c])
    return RaceResult(errors, tuple(ranking), spent)


def _survivors(
    alive: list[int],
    errors: dict[int, dict[int, float]],
    scores: dict[int, float],
    pinned: int | None,
) -> list[int]:
    ranked = sorted(alive, key=lambda c: scores[c])
    kept = ranked[: math.ceil(len(ranked) / 2)]
    best = kept[0]
    kept = [c for c in kept if c == best or not _surely_worse(errors[c], errors[best])]
    if pinned is None or (pinned in kept and kept != [pinned]):
        return kept
    return ranked[:2] if kept == [pinned] else [*kept, pinned]  # somebody has to challenge it


def _surely_worse(errors: dict[int, float], best: dict[int, float]) -> bool:
    common = sorted(set(errors) & set(best))
    if len(common) < _SURE:
        return False
    return mean_ci([float(log_error(errors[p]) - log_error(best[p])) for p in common]).low > 0


def _scores(
    alive: Sequence[int],
    errors: dict[int, dict[int, float]],
    pinned: int | None,
    prior: Sequence[float] | None,
) -> dict[int, float]:
    """Mean bounded log ratio to the pinned candidate's errors (without one, to the mean of those
    that are left), with the prediction among them.
    """
    logs = np.array([log_error(list(errors[c].values())) for c in alive])
    reference = logs.mean(axis=0) if pinned is None else logs[list(alive).index(pinned)]
    ratios = np.clip(logs - reference, -_CLIP, _CLIP)
    if prior is not None:
        predicted = np.clip([[prior[c]] * PRIOR_PROMPTS for c in alive], -_CLIP, _CLIP)
        ratios = np.concatenate([ratios, predicted], axis=1)
    return dict(zip(alive, ratios.mean(axis=1).tolist(), strict=True))
