r"""Plans that reuse one range of blocks in runs, best under the score, by dynamic programming.

Between two steps r and r' that compute everything lie the r' - r - 1 steps of a run, all of which
reuse the range with the change stored at r, or (order 1) with the forecast from r and the computed
step before it, m steps earlier. A run costs

    c(r, r', m) = (sum over its steps t of sqrt(w_t E_t))^2,

E_t the recorded error of reuse or of the forecast, and

    V[r, m] = min over r' of  c(r, r', m) - price * seconds saved + V[r', r' - r]

is the exact optimum for a price; bisection over the price meets the ratio. With a guidance plan
beside it, only steps that run the positive branch alone may reuse; those of them that do not store
that branch's changes anew.

Suffixes: S steps, G gaps r' - r, M spacings m of the two computed steps (index m - 1).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np

from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.quality.metrics import log_error
from osp_opt.search.cache.block_times import BlockTimes
from osp_opt.search.cache.scores import FloatArray, ReuseErrors

__all__ = ["LAGS", "best_runs", "cheapest_plan", "run_plans", "run_ranges"]

MAX_GAP = 4  # at one speed longer runs were worse (47.0 against 50.8 dB at 3x, 100 steps)
WIDE_GAP = 6  # where a ratio cannot be had with that
LAGS = 2 * WIDE_GAP - 1  # a forecast looks back over a run and the gap before it
_BISECTIONS = 20

Range = tuple[int, int]


def run_ranges(num_blocks: int) -> list[Range]:
    """Ranges worth planning with: nearly all blocks, and the first halves."""
    ends = {num_blocks, num_blocks - 1, num_blocks - 2, (3 * num_blocks) // 4, num_blocks // 2}
    found = [(a, b) for a, b in product((0, 1, 2), sorted(ends, reverse=True))]
    return [(a, b) for a, b in found if b - a >= max(1, num_blocks // 3)]


def run_plans(
    errors: ReuseErrors, importance_S: np.ndarray, times: BlockTimes, ratio: float
) -> list[CachePolicy]:
    """The best plan of each range and order that is predicted to reach `ratio`."""
    found = []
    for order, blocks in product((1, 0), run_ranges(errors.num_blocks)):
        plan = best_runs(errors, importance_S, times, ratio, blocks, order)
        if plan is not None:
            found.append(plan)
    return found


def best_runs(
    errors: ReuseErrors,
    importance_S: np.ndarray,
    times: BlockTimes,
    ratio: float,
    blocks: Range,
    order: int,
    guidance: GuidancePlan | None = None,
    spared: int = 0,
) -> CachePolicy | None:
    """The plan of least score for one range, at least `ratio` fast; None when there is none.

    With `guidance` it reuses guidance as that says, and blocks at steps of it only, but for the
    last `spared` ones.
    """
    steps = errors.num_steps
    before = times.cumulative
    saved = float(before[blocks[1]] - before[blocks[0]] - times.add)
    if saved <= 0.0:
        return None
    reach = min((errors.max_lag + 1) // 2 if order else errors.max_lag + 1, steps - 1)
    for gaps in sorted({min(MAX_GAP, reach), min(WIDE_GAP, reach)}):
        cost = _run_costs(errors, importance_S, blocks, order, gaps)
        if guidance is not None:
            last = steps - spared
            _forbid(cost, [s for s in range(steps) if s >= last or not guidance.reuses(s)])
        known = cost[(cost > 0) & np.isfinite(cost)]
        average = float(np.median(known)) / saved if len(known) else 1.0
        plan_at = partial(_plan_at, cost * (1.0 / saved), blocks, order, guidance)
        plan = cheapest_plan(plan_at, average, times, steps, ratio, _BISECTIONS)
        if plan is not None:
            return plan
    return None


def _plan_at(
    cost_SGM: FloatArray, blocks: Range, order: int, guidance: GuidancePlan | None, price: float
) -> CachePolicy:
    """The plan of least cost, in units of what a reused step saves, when that is worth `price`."""
    steps = len(cost_SGM)
    computed = _refreshes(cost_SGM, price)
    reused = {step: [blocks] for step in range(steps) if step not in computed}
    return CachePolicy.explicit(reused, steps, order, guidance)


def cheapest_plan(
    plan_at: Callable[[float], CachePolicy],
    average: float,
    times: BlockTimes,
    num_steps: int,
    ratio: float,
    bisections: int,
) -> CachePolicy | None:
    """The plan at the lowest price of a second that is at least `ratio` fast; None if none is.

    Geometric bisection around the `average` price, over twelve decades.
    """
    low, high = average * 1e-6, average * 1e6
    best = plan_at(high)
    if times.speedup(best, num_steps) < ratio:
        return None
    for _ in range(bisections):
        middle = (low * high) ** 0.5
        plan = plan_at(middle)
        if times.speedup(plan, num_steps) >= ratio:
            best, high = plan, middle
        else:
            low = middle
    return best


def _run_costs(
    errors: ReuseErrors, importance_S: np.ndarray, blocks: Range, order: int, gaps: int
) -> FloatArray:
    """c[r, g - 1, m - 1] of a run from r to r + g, the computed step before r being r - m.

    Of no earlier computed step (r = 0) the cost is that of plain reuse; so it is for order 0.
    """
    steps = errors.num_steps
    spacings = gaps if order else 1
    cost = np.zeros((steps, gaps, spacings))
    for r, m in product(range(steps), range(1, spacings + 1)):
        amplitude = 0.0
        for gap in range(2, gaps + 1):
            step = r + gap - 1
            if step < steps:
                spacing = m if order and r >= m else None
                values = errors.of_reuse(step, gap - 1, blocks, spacing)
                mean = float(np.exp(log_error(values).mean()))
                amplitude += float(np.sqrt(importance_S[step] * mean))
            cost[r, gap - 1, m - 1] = amplitude**2
    return np.broadcast_to(cost, (steps, gaps, gaps)).copy()


def _forbid(cost_SGM: FloatArray, computing: list[int]) -> None:
    """No run may reuse at the steps `computing`."""
    for step, gap in product(computing, range(2, cost_SGM.shape[1] + 1)):
        cost_SGM[max(0, step - gap + 1) : step, gap - 1] = np.inf


def _refreshes(cost_SGM: FloatArray, price: float) -> set[int]:
    """The steps that compute everything, at this price of a reused step."""
    steps, gaps, spacings = cost_SGM.shape
    value = np.zeros((steps + gaps + 1, spacings))
    choice = np.ones((steps, spacings), dtype=int)
    for r in range(steps - 1, -1, -1):
        for m in range(spacings):
            options = []
            for gap in range(1, gaps + 1):
                reused = min(r + gap, steps) - r - 1
                options.append(cost_SGM[r, gap - 1, m] - price * reused + value[r + gap, gap - 1])
            choice[r, m] = 1 + int(np.argmin(options))
            value[r, m] = min(options)
    found, r, m = set(), 0, 0
    while r < steps:
        found.add(r)
        gap = int(choice[r, m])
        r, m = r + gap, gap - 1
    return found
