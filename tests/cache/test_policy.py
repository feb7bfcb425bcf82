"""Cache policies: what they accept, what they count, and their two file formats."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from osp_opt.base.errors import FileError, PolicyError
from osp_opt.cache.policy import CachePolicy

REFERENCE = Path(__file__).parents[1] / "golden" / "reference_tool_files" / "dit_cache_config.json"


def test_reads_the_reference_tools_file_and_writes_one_it_reads(tmp_path: Path) -> None:
    policy = CachePolicy.from_file(REFERENCE)
    assert policy == CachePolicy.four_field(3, 15, 5, 2)
    policy.save(tmp_path / "dit_cache_config.json")
    written = json.loads((tmp_path / "dit_cache_config.json").read_text())
    assert written == json.loads(REFERENCE.read_text())
    assert all(type(value) is int for value in written.values())


@pytest.mark.parametrize("seed", range(20))
def test_counts_equal_brute_force(seed: int) -> None:
    rng = random.Random(seed)
    blocks, steps = rng.randint(2, 40), rng.randint(3, 100)
    start = rng.randrange(blocks)
    policy = CachePolicy.four_field(
        start, rng.randint(1, blocks - start), rng.randrange(steps - 1), rng.randint(2, 6)
    )
    saved = sum(end - begin for t in range(steps) for begin, end in policy.reuse_ranges(t))
    assert policy.reused_blocks(steps) == saved
    assert policy.expanded(steps).reused_blocks(steps) == saved
    assert policy.speedup(blocks, steps) == pytest.approx(
        steps * blocks / (steps * blocks - saved) if saved < steps * blocks else float("inf")
    )


def test_speedup_of_the_reference_example() -> None:
    # 32 blocks, 100 steps, 15 blocks reused on 47 steps: FACTS section 3 counts it so.
    assert CachePolicy.four_field(3, 15, 5, 2).speedup(32, 100) == pytest.approx(
        3200 / (3200 - 47 * 15)
    )


@pytest.mark.parametrize(
    ("fields", "model", "message"),
    [
        ((3, 4, 0, 2), (6, 10), "beyond the model's 6 blocks"),
        ((0, 2, 0, 1), (6, 10), "interval 1 never reuses"),
        ((0, 2, 9, 2), (6, 10), "at most 8"),
    ],
)
def test_validate_refuses(
    fields: tuple[int, int, int, int], model: tuple[int, int], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        CachePolicy.four_field(*fields).validate(*model)


@pytest.mark.parametrize("fields", [(-1, 1, 0, 2), (0, 0, 0, 2), (0, 1, -1, 2), (0, 1, 0, 0)])
def test_impossible_numbers_are_refused_at_once(fields: tuple[int, int, int, int]) -> None:
    with pytest.raises(PolicyError, match="it must be at least"):
        CachePolicy.four_field(*fields)


def test_the_widest_policies_that_are_allowed() -> None:
    CachePolicy.four_field(0, 6, 8, 2).validate(6, 10)
    CachePolicy.four_field(5, 1, 0, 9).validate(6, 10)


def test_plan_survives_its_file(tmp_path: Path) -> None:
    plan = CachePolicy.explicit({3: [(4, 6), (0, 2)], 5: [(0, 2)], 6: [(1, 6)]}, 8, order=1)
    plan.save(tmp_path / "plan.json")
    assert CachePolicy.from_file(tmp_path / "plan.json") == plan
    assert plan.reuse_ranges(3) == ((0, 2), (4, 6))
    assert not plan.is_four_field
    plan.validate(6, 8)
    written = json.loads((tmp_path / "plan.json").read_text())
    assert CachePolicy.from_json(written | {"coordinate": "step"}) == plan  # of earlier versions
    with pytest.raises(PolicyError, match="for 8 steps and the video has 9"):
        plan.validate(6, 9)
    with pytest.raises(PolicyError, match="reuses block 5"):
        plan.validate(5, 8)


@pytest.mark.parametrize(
    ("reuse", "message"),
    [
        ({0: [(0, 1)]}, "step 0 reuses blocks 0..0 before"),
        ({2: [(0, 2), (1, 3)]}, "overlap"),
        ({2: [(1, 1)]}, "empty"),
        ({9: [(0, 1)]}, "outside the 5 steps"),
        ({0: [(2, 3)], 1: [(0, 3)]}, "before any step computed"),
    ],
)
def test_plans_that_cannot_run_are_refused(
    reuse: dict[int, list[tuple[int, int]]], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        CachePolicy.explicit(reuse, 5)


def test_a_partly_reused_range_does_not_count_as_computed() -> None:
    # Blocks 0..4 are reused at step 3; at step 2 a part of them was, so step 1 is the source.
    plan = CachePolicy.explicit({2: [(1, 3)], 3: [(0, 5)]}, 4)
    assert [plan.store_ranges(step) for step in range(4)] == [(), ((0, 5), (1, 3)), (), ()]
    assert plan.max_deltas() == 2


GOOD = {
    "cache_block_start": 1,
    "cache_num_blocks": 2,
    "cache_step_start": 3,
    "cache_step_interval": 2,
}


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        GOOD | {"extra": 1},
        {k: v for k, v in GOOD.items() if k != "cache_num_blocks"},
        GOOD | {"cache_num_blocks": 2.0},
        GOOD | {"cache_num_blocks": True},
        GOOD | {"cache_num_blocks": "2"},
        GOOD | {"cache_block_start": -1},
        {"format": "osp-opt/cache-policy/99"},
        {"format": "osp-opt/cache-policy/1", "num_steps": 3},
        {
            "format": "osp-opt/cache-policy/1",
            "num_steps": 10**9,
            "order": 0,
            "reuse": [],
        },
    ],
)
def test_broken_files_name_themselves(tmp_path: Path, content: object) -> None:
    path = tmp_path / "cache.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PolicyError, match=r"cache\.json"):
        CachePolicy.from_file(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"nothing\.json"):
        CachePolicy.from_file(tmp_path / "nothing.json")
