r"""Free cache plans: for every step, which ranges of blocks to reuse, by dynamic programming.

The additive part of the score of `scores.py` is minimised under a time budget with a Lagrange
multiplier:

    min over plans   sum_t sqrt(w_t E_{t,l}[ranges_t])  -  lambda * (seconds saved),

exactly, for each lambda: per step and age of the stored changes the best set of disjoint ranges
(a shortest path over block boundaries), then over steps the best moments to compute everything
anew (a shortest path over ages). Bisection over lambda meets the budget. Errors of disjoint ranges
are taken as additive.

Suffixes: S steps, L ages 1..L, B boundaries (blocks + 1).
"""

from __future__ import annotations

import itertools
from itertools import product

import numpy as np

from osp_opt.cache.policy import CachePolicy
from osp_opt.quality.metrics import LEAST_ERROR, log_error
from osp_opt.search.cache.block_times import BlockTimes
from osp_opt.search.cache.candidates import Candidate
from osp_opt.search.cache.moves import guided_plans
from osp_opt.search.cache.runs import cheapest_plan, run_plans
from osp_opt.search.cache.scores import ReuseErrors, policy_score

__all__ = ["MAX_DELTAS", "best_plan", "free_candidates"]

MAX_DELTAS = 12  # stored changes per branch, each as large as the hidden state: bounds the memory
_BISECTIONS = 24
# (power of the weighted squared errors that adds up, one range per step); 1: errors of different
# steps taken as unrelated
_KINDS = ((0.5, True), (0.5, False), (1.0, False))
_AGES = (1, 2, 4, 7)

Ranges = tuple[tuple[int, int], ...]


def free_candidates(
    errors: ReuseErrors,
    importance_S: np.ndarray,
    times: BlockTimes,
    ratio: float,
    limit: int,
    *,
    guided: bool = False,
) -> list[Candidate]:
    """Different plans predicted to reach `ratio`, best-scored first.

    Of order 1 those of `run_plans`; of order 0 also plans that differ in how old a reused change
    may get, in how errors are taken to add up, and in one or several ranges per step. The score
    orders plans of one order of forecast; between the two it is no judge (what reuse does at
    different steps points the same way, what forecasts do less so), so they take turns, and with
    them, where `guided`, those that reuse guidance too, which the score does not see. None reach
    the largest ratios, where a four-field rule may reuse one change to the end.
    """

    def rated(plan: CachePolicy) -> Candidate:
        score = policy_score(plan, errors, importance_S)
        return Candidate(plan, score, times.speedup(plan, errors.num_steps))

    mean_SLBB = np.exp(log_error(errors.table).mean(axis=0))
    found: dict[CachePolicy, Candidate] = {}
    for age, (power, single) in product(_AGES, _KINDS):
        if age > errors.max_lag:
            continue
        cost = (mean_SLBB[:, :age] * importance_S[:, None, None, None]) ** power
        plan = best_plan(cost, times, ratio, single_range=single)
        if plan is not None and plan.max_deltas() <= MAX_DELTAS:
            found[plan] = rated(plan)
    for plan in run_plans(errors, importance_S, times, ratio):
        found[plan] = rated(plan)
    by_order: list[list[Candidate]] = [
        sorted((c for c in found.values() if c.policy.order == order), key=lambda c: c.score)
        for order in (1, 0)
    ]
    if guided:
        by_order.append([rated(p) for p in guided_plans(errors, importance_S, times, ratio)])
    turns = itertools.zip_longest(*by_order)
    return [candidate for turn in turns for candidate in turn if candidate is not None][:limit]


def best_plan(
    cost_SLBB: np.ndarray, times: BlockTimes, ratio: float, *, single_range: bool = False
) -> CachePolicy | None:
    """The plan of least cost whose predicted speed-up is at least `ratio`; None if none is.

    `cost_SLBB[t, l - 1, a, b]` is what reusing the blocks [a, b) at step t costs with a change l
    steps old.
    """
    steps = len(cost_SLBB)
    before = times.cumulative
    saved_BB = before[None, :] - before[:, None] - times.add
    average = float(cost_SLBB[np.isfinite(cost_SLBB)].mean() / max(times.step, 1e-12)) + LEAST_ERROR

    def plan_at(price: float) -> CachePolicy:
        return _plan_at(price, cost_SLBB, saved_BB, single_range)

    return cheapest_plan(plan_at, average, times, steps, ratio, _BISECTIONS)


def _plan_at(
    price: float, cost_SLBB: np.ndarray, saved_BB: np.ndarray, single_range: bool
) -> CachePolicy:
    steps, ages = cost_SLBB.shape[:2]
    gain = cost_SLBB - price * saved_BB
    value_SL, choice = _best_ranges(gain, single_range)
    # after[t, l]: least cost of the steps from t on, when the stored changes are l steps old
    after = np.full((steps + 1, ages + 2), np.inf)
    after[steps] = 0.0
    reuse = np.zeros((steps, ages + 2), dtype=bool)
    for step in range(steps - 1, -1, -1):
        compute = after[step + 1, 1]
        after[step] = compute
        for age in range(1, min(ages, step) + 1):
            value = value_SL[step, age - 1]
            kept = value + after[step + 1, age + 1]
            if value < 0 and kept < compute:
                after[step, age], reuse[step, age] = kept, True
    plan: dict[int, Ranges] = {}
    age = 1
    for step in range(1, steps):
        if reuse[step, age]:
            plan[step] = _ranges(choice, step, age)
            age += 1
        else:
            age = 1
    return CachePolicy.explicit(plan, steps)


def _best_ranges(gain_SLBB: np.ndarray, single_range: bool) -> tuple[np.ndarray, np.ndarray]:
    """Least total gain [S, L] of disjoint ranges, and choice[S, L, b] = start of the range that
    ends at b in the best solution up to b, or -1 when block b - 1 runs."""
    s, ages, b, _ = gain_SLBB.shape
    upto = np.zeros((s, ages, b))
    choice = np.full((s, ages, b), -1)
    for end in range(1, b):
        base = np.zeros((s, ages, end)) if single_range else upto[:, :, :end]
        options = base + gain_SLBB[:, :, :end, end]
        start = options.argmin(axis=2)
        value = np.take_along_axis(options, start[:, :, None], axis=2)[:, :, 0]
        better = value < upto[:, :, end - 1]
        upto[:, :, end] = np.where(better, value, upto[:, :, end - 1])
        choice[:, :, end] = np.where(better, start, -1)
    if single_range:
        choice = _only_last(choice)
    return upto[:, :, -1], choice


def _only_last(choice: np.ndarray) -> np.ndarray:
    """With one range allowed, what ends before it is not part of the solution."""
    kept = np.full_like(choice, -1)
    chosen = np.zeros(choice.shape[:2], dtype=bool)
    for end in range(choice.shape[2] - 1, 0, -1):
        here = (choice[:, :, end] >= 0) & ~chosen
        kept[:, :, end] = np.where(here, choice[:, :, end], -1)
        chosen |= here
    return kept


def _ranges(choice: np.ndarray, step: int, age: int) -> Ranges:
    ranges: list[tuple[int, int]] = []
    end = choice.shape[2] - 1
    while end > 0:
        start = int(choice[step, age - 1, end])
        if start < 0:
            end -= 1
            continue
        if ranges and ranges[-1][0] == end:  # neighbours reused together are one range
            ranges[-1] = (start, ranges[-1][1])
        else:
            ranges.append((start, end))
        end = start
    return tuple(reversed(ranges))
