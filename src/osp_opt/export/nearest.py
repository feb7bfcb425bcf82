"""The policy that a runtime can run and that differs least from one that it cannot.

Policies are compared as tables of which block is reused at which step; the distance of two is the
number of entries in which they differ. No torch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy

__all__ = [
    "as_four_field",
    "check_reuses",
    "difference",
    "nearest_four_field",
    "nearest_single_range",
    "refuse_guidance",
    "reuse_table",
]

MAX_INTERVAL = 64
"""Steps; the longest interval that is tried, besides that of a range which is computed once."""

Table = npt.NDArray[np.bool_]
Sums = npt.NDArray[np.float64]


def check_reuses(policy: CachePolicy, num_steps: int) -> None:
    """Raise PolicyError for a policy that reuses neither blocks nor guidance."""
    if policy.guidance is None and not policy.reused_blocks(num_steps):
        raise PolicyError("this policy never reuses anything: there is nothing to export")


def refuse_guidance(policy: CachePolicy, num_steps: int, runtime: str) -> None:
    """Raise PolicyError for a policy that reuses the difference of the guidance branches, and for
    one that reuses nothing.
    """
    check_reuses(policy, num_steps)
    if policy.guidance is None:
        return
    if not policy.reused_blocks(num_steps):
        raise PolicyError(
            f"this policy reuses guidance and no blocks, and {runtime} knows nothing like it"
        )
    raise PolicyError(
        f"this policy also reuses guidance, and {runtime} knows nothing like it; the nearest "
        "that it can do is the same reuse of blocks without that of guidance"
    )


def reuse_table(policy: CachePolicy, num_blocks: int, num_steps: int) -> Table:
    """[steps, blocks]: whether a block is reused at a step. Raises PolicyError as `validate`."""
    policy.validate(num_blocks, num_steps)
    table = np.zeros((num_steps, num_blocks), dtype=np.bool_)
    for step in range(num_steps):
        for start, end in policy.reuse_ranges(step):
            table[step, start:end] = True
    return table


def difference(policy: CachePolicy, other: CachePolicy, num_blocks: int, num_steps: int) -> str:
    """In words, how many uses of a block differ between two policies."""
    here, there = (reuse_table(p, num_blocks, num_steps) for p in (policy, other))
    return f"{int((here != there).sum())} of {here.size} uses of a block differ"


def as_four_field(policy: CachePolicy, num_steps: int) -> CachePolicy | None:
    """The four-field rule that reuses what `policy` does, from the same steps; None without one."""
    if policy.order or policy.guidance is not None:
        return None
    if policy.rule is not None:
        return policy
    reused = [step for step, ranges in enumerate(policy.plan) if ranges]
    if not reused or len({ranges for ranges in policy.plan if ranges}) != 1:
        return None
    if len(policy.plan[reused[0]]) != 1:
        return None
    ((start, end),) = policy.plan[reused[0]]
    first = reused[0] - 1
    refreshed = [step for step in range(first + 1, num_steps) if not policy.plan[step]]
    interval = (refreshed[0] if refreshed else num_steps) - first
    rule = CachePolicy.four_field(start, end - start, first, interval)
    return rule if rule.expanded(num_steps).plan == policy.plan else None


def nearest_four_field(
    policy: CachePolicy, num_blocks: int, num_steps: int, least_blocks: int = 2
) -> CachePolicy:
    """The four-field rule nearest to `policy`, of at least `least_blocks` blocks.

    Every start, and every interval up to 64 steps, is tried; the best range of blocks for each
    follows from what its blocks gain.
    """
    if num_blocks < least_blocks:
        raise PolicyError(f"a model of {num_blocks} blocks has no range of {least_blocks}")
    table = reuse_table(policy, num_blocks, num_steps).astype(np.float64)
    first = np.arange(num_steps - 1)  # of a rule: where it computes the range for the first time
    after = num_steps - 1 - first
    best, found = -np.inf, policy
    for interval in (*range(2, min(num_steps, MAX_INTERVAL) + 1), num_steps):
        # Uses of each block at the steps after `first` that the rule does not compute.
        refreshed = _every(table, interval)
        uses = _every(table, 1)[first + 1] - refreshed[first + interval]
        # What a block in the range brings: entries that agree less entries that do not.
        gain = 2.0 * uses - (after - after // interval)[:, None]
        row, (start, end), total = _best_range(gain, least_blocks)
        if total > best:
            best = total
            reach = min(interval, num_steps - row)
            found = CachePolicy.four_field(start, end - start, row, max(2, reach))
    return found


def nearest_single_range(
    policy: CachePolicy, num_blocks: int, num_steps: int, first_block: int = 1
) -> CachePolicy:
    """The nearest plan with one range of blocks, from `first_block` on, at any steps; same order.

    For a range the best steps are those at which more than half of its blocks are reused.
    """
    if num_blocks <= first_block:
        raise PolicyError(f"a model of {num_blocks} blocks has none from block {first_block} on")
    sums = _running(reuse_table(policy, num_blocks, num_steps).astype(np.float64))
    best, found = -np.inf, (first_block, num_blocks)
    for start in range(first_block, num_blocks):
        inside = sums[:, start + 1 :] - sums[:, start : start + 1]  # [steps, ends]
        totals = (2.0 * inside - np.arange(1, num_blocks - start + 1)).clip(0.0).sum(0)
        if totals.max() > best:
            best = totals.max()
            found = (start, start + 1 + int(totals.argmax()))
    start, end = found
    reused = np.flatnonzero(2.0 * (sums[:, end] - sums[:, start]) > end - start)
    return CachePolicy.explicit({int(s): [found] for s in reused}, num_steps, policy.order)


def _best_range(gain: Sums, least: int) -> tuple[int, tuple[int, int], float]:
    """(row, range, sum) of the largest sum of `gain` [rows, blocks] over `least` blocks or more."""
    sums = _running(gain)
    # The sum of a range is a difference of two running sums; for each end the least one before it.
    before = np.minimum.accumulate(sums[:, : gain.shape[1] - least + 1], axis=1)
    totals = sums[:, least:] - before
    row, place = (int(i) for i in np.unravel_index(int(totals.argmax()), totals.shape))
    start = int(sums[row, : place + 1].argmin())
    return row, (start, place + least), float(totals[row, place])


def _every(table: Sums, interval: int) -> Sums:
    """Row t: the sum of the rows t, t + interval, t + 2 interval, ...; rows of 0 beyond the end."""
    sums = np.concatenate([table, np.zeros((interval, table.shape[1]))])
    for phase in range(interval):
        sums[phase::interval] = sums[phase::interval][::-1].cumsum(0)[::-1]
    return sums


def _running(rows: Sums) -> Sums:
    """[rows, n + 1] running sums, from 0, of [rows, n]."""
    return np.concatenate([np.zeros((len(rows), 1)), rows.cumsum(1)], axis=1)
