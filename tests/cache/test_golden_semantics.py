"""The runtime does what the reference tool's cache was measured to do, bugs excepted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache

GOLDEN = Path(__file__).parents[1] / "golden" / "cache_semantics.json"
CASES = {case["name"]: case for case in json.loads(GOLDEN.read_text())["cases"]}
GOOD = [name for name in CASES if not name.startswith("PEER_BUG")]


def policy_of(case: dict[str, Any]) -> CachePolicy:
    return CachePolicy.from_json(case["config"])


def run_case(case: dict[str, Any], cache: BlockCache) -> list[tuple[list[int], Any]]:
    """(evaluated blocks, step output) per step of the dummy model that the golden file names."""
    dual = case["options"].get("dual", False)
    seen = []
    for _ in range(case["options"].get("gens", 1)):
        cache.reset()
        for step in range(case["num_steps"]):
            evaluated: list[int] = []

            def layer(i: int, step: int = step, evaluated: list[int] = evaluated) -> Any:
                def forward(h: Any) -> Any:
                    evaluated.append(i)
                    change = torch.tensor([float(step), float(i)])
                    return tuple(s + change for s in h) if dual else h + change

                return forward

            zero, one = torch.zeros(2), torch.ones(2)
            out = cache.at(step)(
                [layer(i) for i in range(case["num_blocks"])], (zero, one) if dual else zero
            )
            seen.append((evaluated, [s.tolist() for s in out] if dual else out.tolist()))
    return seen


@pytest.mark.parametrize("name", GOOD)
def test_golden_case(name: str) -> None:
    case = CASES[name]
    expected = [(step["evaluated"], step["step_output"]) for step in case["result"]]
    assert run_case(case, BlockCache(policy_of(case))) == expected


@pytest.mark.parametrize("name", GOOD)
def test_explicit_plan_of_the_same_reuse_does_the_same(name: str) -> None:
    case = CASES[name]
    plan = policy_of(case).expanded(case["num_steps"])
    expected = [(step["evaluated"], step["step_output"]) for step in case["result"]]
    assert run_case(case, BlockCache(plan)) == expected


def test_one_cached_block_works_where_the_reference_crashes() -> None:
    case = CASES["PEER_BUG_num_blocks_1"]
    evaluated = [blocks for blocks, _ in run_case(case, BlockCache(policy_of(case)))]
    assert evaluated == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 3, 4], [0, 1, 2, 3, 4]]


def test_what_the_reference_accepts_by_mistake_is_refused() -> None:
    with pytest.raises(PolicyError, match="cache_num_blocks is 0"):
        policy_of(CASES["PEER_BUG_num_blocks_0"])
    past_end = CASES["PEER_BUG_region_past_end"]
    with pytest.raises(PolicyError, match="beyond the model's 5 blocks"):
        policy_of(past_end).validate(5, 4)
    with pytest.raises(PolicyError, match="beyond the model's 5"):
        run_case(past_end, BlockCache(policy_of(past_end)))
