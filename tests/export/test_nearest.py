"""The nearest policy of a family, against trying every member."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.export.nearest import (
    as_four_field,
    nearest_four_field,
    nearest_single_range,
    reuse_table,
)

BLOCKS, STEPS = 5, 7


def random_plans(count: int) -> list[CachePolicy]:
    rng = np.random.default_rng(1)
    plans = []
    for _ in range(count):
        reuse = {}
        for step in range(1, STEPS):
            a, b = sorted(rng.integers(0, BLOCKS + 1, 2))
            if a < b:
                reuse[step] = [(int(a), int(b))]
        plans.append(CachePolicy.explicit({s: r for s, r in reuse.items() if s > 0}, STEPS))
    return [plan for plan in plans if any(plan.plan)]


def distance(a: CachePolicy, b: CachePolicy) -> int:
    return int((reuse_table(a, BLOCKS, STEPS) != reuse_table(b, BLOCKS, STEPS)).sum())


@pytest.mark.parametrize("policy", random_plans(12), ids=str)
def test_nothing_of_the_family_is_nearer(policy: CachePolicy) -> None:
    rules = [
        CachePolicy.four_field(a, b - a, t, i)
        for a, b in combinations(range(BLOCKS + 1), 2)
        for t, i in product(range(STEPS - 1), range(2, STEPS + 1))
        if b - a >= 2
    ]
    found = nearest_four_field(policy, BLOCKS, STEPS)
    assert distance(policy, found) == min(distance(policy, rule) for rule in rules)

    single = nearest_single_range(policy, BLOCKS, STEPS)
    ((start, _end),) = {blocks for ranges in single.plan for blocks in ranges}
    assert start >= 1
    plans = [
        CachePolicy.explicit({s: [blocks] for s in steps}, STEPS)
        for blocks in combinations(range(1, BLOCKS + 1), 2)
        for n in range(1, STEPS)
        for steps in combinations(range(1, STEPS), n)
    ]
    assert distance(policy, single) == min(distance(policy, plan) for plan in plans)


def test_a_rule_is_recognised_in_its_plan() -> None:
    for fields in product((0, 2), (1, 3), range(STEPS - 1), (2, 3, 9)):
        rule = CachePolicy.four_field(*fields)
        found = as_four_field(rule.expanded(STEPS), STEPS)
        assert found is not None
        assert found.expanded(STEPS) == rule.expanded(STEPS)
    assert as_four_field(CachePolicy.explicit({1: [(0, 2)], 4: [(0, 2)]}, STEPS), STEPS) is None


def test_a_model_too_small_for_the_family() -> None:
    policy = CachePolicy.four_field(0, 1, 0, 2)
    with pytest.raises(PolicyError, match="1 blocks"):
        nearest_four_field(policy, 1, STEPS)
    with pytest.raises(PolicyError, match="1 blocks"):
        nearest_single_range(policy, 1, STEPS)
