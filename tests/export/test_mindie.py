"""MindIE-SD: what its own classes did (golden data of mindiesd 3.1.0) is what our policies do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from osp_opt.base.errors import PolicyError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.export.mindie import (
    mindie_policy_file,
    mindie_policy_table,
    mindie_sd_arguments,
    parse_cache_config,
    read_mindie_sd,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mindie_sd.json").read_text())
BLOCKS = 8
NEVER = "every block at every step"


def block(index: int, step: int, x: torch.Tensor) -> torch.Tensor:
    """The golden data's dummy block."""
    return x + 0.1 * torch.tanh(x + 0.3 * index) + 0.05 * math.cos(0.7 * step + index)


def start(step: int) -> torch.Tensor:
    return torch.tensor([math.sin(1.3 * step) + 0.1 * step], dtype=torch.float64)


def outputs(policy: CachePolicy, num_steps: int, num_blocks: int = BLOCKS) -> list[float]:
    cache = BlockCache(policy)
    found = []
    for step in range(num_steps):
        layers = [lambda x, i=i, t=step: block(i, t, x) for i in range(num_blocks)]
        found.append(float(cache.at(step)(layers, start(step))))
    return found


@pytest.mark.parametrize("case", GOLDEN["four_field"])
def test_a_cache_of_mindie_sd_and_back(case: dict[str, Any]) -> None:
    config = case["config"]
    cache = read_mindie_sd(config)
    assert outputs(cache.policy, cache.num_steps) == pytest.approx(case["outputs"], abs=1e-12)
    assert cache.notes == ()
    assert mindie_sd_arguments(cache.policy, cache.num_blocks, cache.num_steps) == config
    # The same reuse written out step by step is the same cache; a plan without a pattern is none.
    plan = cache.policy.expanded(cache.num_steps)
    again = read_mindie_sd(mindie_sd_arguments(plan, cache.num_blocks, cache.num_steps))
    assert again.policy.expanded(cache.num_steps) == plan


def test_what_a_config_does_rather_than_says() -> None:
    """Its `step_end` does nothing; some settings switch it off; one block is computed wrongly."""
    ignored, *off, one_block = GOLDEN["odd"]
    cache = read_mindie_sd(ignored["config"])
    assert outputs(cache.policy, cache.num_steps) == pytest.approx(ignored["outputs"], abs=1e-12)
    assert "step_end 6 does nothing" in cache.notes[0]
    everything = [list(range(BLOCKS))] * 12
    for case in off:
        assert case["ran"] == everything
        with pytest.raises(PolicyError, match=NEVER):
            read_mindie_sd(case["config"])
    fields = one_block["config"]
    ours = CachePolicy.four_field(fields["block_start"], 1, fields["step_start"], 2)
    assert outputs(ours, 12) != pytest.approx(one_block["outputs"], abs=1e-3)
    with pytest.raises(PolicyError, match="one block"):
        read_mindie_sd(fields)


@pytest.mark.parametrize("config", GOLDEN["refused"])
def test_what_mindie_sd_refuses_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(PolicyError):
        read_mindie_sd(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "attention_cache"}, "attention"),
        ({"steps_count": True}, "steps_count is True"),
        ({"colour": 1}, "unknown 'colour'"),
    ],
)
def test_other_configs_are_refused(change: dict[str, Any], words: str) -> None:
    config = {**GOLDEN["four_field"][0]["config"], **change}
    with pytest.raises(PolicyError, match=words):
        read_mindie_sd(config)


def test_a_python_call_is_read_and_nothing_is_run() -> None:
    config = GOLDEN["four_field"][0]["config"]
    words = ", ".join(f"{name}={value!r}" for name, value in config.items())
    assert parse_cache_config(f"mindiesd.CacheConfig({words})\n") == config
    for text in (
        "CacheConfig(blocks_count=exit())",
        "Other(a=1)",
        "CacheConfig(1)",
        "1 +",
        "(" * 9999,
    ):
        with pytest.raises(PolicyError, match="neither JSON"):
            parse_cache_config(text)


@pytest.mark.parametrize(
    ("policy", "reason", "nearest"),
    [
        (CachePolicy.four_field(3, 1, 2, 2), "one block", "blocks 2..3 every 2 steps from step 2"),
        (
            CachePolicy.four_field(3, 4, 2, 2).expanded(12, order=1),
            "forecasts",
            "blocks 3..6 every 2 steps from step 2",
        ),
        (
            CachePolicy.explicit({s: [(3, 7)] for s in (3, 5, 7, 8, 9, 11)}, 12),
            "fixed interval",
            r"blocks 3..6 every 2 steps from step 2 \(4 of 96 uses",
        ),
        (
            CachePolicy.explicit({s: [(1, 3), (4, 8)] for s in (3, 5, 7, 9, 11)}, 12),
            "one range",
            r"blocks 1..7 every 2 steps from step 2 \(5 of",
        ),
    ],
)
def test_what_it_would_misread_is_refused_with_the_nearest(
    policy: CachePolicy, reason: str, nearest: str
) -> None:
    with pytest.raises(PolicyError, match=f"{reason}.*{nearest}"):
        mindie_sd_arguments(policy, BLOCKS, 12)


def by_cache_mgr(table: np.ndarray, num_steps: int) -> list[float]:
    """As MindIE's cache_mgr: one change per block, that of its last run; step 0 runs everything."""
    changes = [torch.zeros(()) for _ in range(BLOCKS)]
    found = []
    for step in range(num_steps):
        x = start(step)
        for index in range(BLOCKS):
            if step > 0 and table[step - 1, index]:
                x = x + changes[index]
            else:
                before, x = x, block(index, step, x)
                changes[index] = x - before
        found.append(float(x))
    return found


def test_the_tensor_of_cache_mgr_does_what_the_plan_does(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written = refused = 0
    for _ in range(60):
        reuse = {}
        for step in range(1, 10):
            a, b, c, d = sorted(rng.integers(0, BLOCKS + 1, 4))
            if rng.random() < 0.6:
                reuse[step] = [(int(s), int(e)) for s, e in ((a, b), (c, d)) if s < e]
        try:
            policy = CachePolicy.explicit(reuse, 10)
        except PolicyError:
            continue
        try:
            table = mindie_policy_table(policy, BLOCKS, 10)
        except PolicyError:
            refused += 1
            continue
        written += 1
        path = tmp_path / "policy.pt"
        path.write_bytes(mindie_policy_file(table))
        loaded = torch.load(path, weights_only=True)
        assert loaded.dtype == torch.bool
        assert loaded.shape == (9, BLOCKS)
        assert by_cache_mgr(loaded.numpy(), 10) == pytest.approx(outputs(policy, 10), abs=1e-12)
    assert written > 5
    assert refused > 5


def test_cache_mgr_would_take_a_later_change_of_some_blocks() -> None:
    policy = CachePolicy.explicit({2: [(1, 3)], 3: [(1, 5)]}, 6)
    with pytest.raises(PolicyError, match="last ran at different steps"):
        mindie_policy_table(policy, BLOCKS, 6)


def test_cache_mgr_takes_no_forecasts_and_no_more_than_32_blocks() -> None:
    policy = CachePolicy.four_field(1, 2, 0, 2)
    guided = CachePolicy.explicit({2: [(1, 3)]}, 9, guidance=GuidancePlan((4,)))
    for export in (mindie_policy_table, mindie_sd_arguments):
        with pytest.raises(PolicyError, match="reuses guidance"):
            export(guided, BLOCKS, 9)
    with pytest.raises(PolicyError, match="order 0"):
        mindie_policy_table(policy.expanded(9, order=1), BLOCKS, 9)
    with pytest.raises(PolicyError, match="32 blocks"):
        mindie_policy_table(policy, 33, 9)
