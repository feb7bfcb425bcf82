"""Policies in cache-dit's words.

That these arguments give the same hidden states was checked by hand with cache-dit 1.5.3 on the
golden transformer (difference 0.0); here, that they say what the policy does.
"""

from __future__ import annotations

import pytest

from osp_opt.base.errors import PolicyError
from osp_opt.cache.export import cache_dit_arguments
from osp_opt.cache.policy import CachePolicy


def test_first_and_last_blocks_and_the_mask_of_computed_steps() -> None:
    arguments = cache_dit_arguments(CachePolicy.four_field(3, 15, 5, 2), 32, 12)
    assert arguments["Fn_compute_blocks"] == 3
    assert arguments["Bn_compute_blocks"] == 32 - 3 - 15
    assert arguments["steps_computation_mask"] == [1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1]
    assert arguments["steps_computation_policy"] == "static"


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (CachePolicy.four_field(0, 2, 0, 2), "block 0"),
        (CachePolicy.explicit({1: [(1, 2)], 2: [(1, 3)]}, 4), "has 2"),
        (CachePolicy.explicit({1: [(1, 2)]}, 4, order=1), "forecast"),
        (CachePolicy.four_field(3, 2, 0, 2), "beyond"),
    ],
)
def test_what_it_cannot_say(policy: CachePolicy, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        cache_dit_arguments(policy, 4, 4)
