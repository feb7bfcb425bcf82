"""Policies in cache-dit's words: what they say, and that cache-dit itself does the same with them.

The second needs cache-dit (the `bench` extra); it was run with 1.5.3.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from osp_opt.base.errors import PolicyError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.export.cache_dit import cache_dit_arguments, cache_dit_config, sglang_environment
from osp_opt.model.transformer import OpenSoraT2V

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer"
STEPS, VIDEOS = 9, 2
RUNS = {step: [(1, 3)] for step in (4, 5, 8)}


def test_first_and_last_blocks_and_the_mask_of_computed_steps() -> None:
    arguments = cache_dit_arguments(CachePolicy.four_field(3, 15, 5, 2), 32, 12, calls_per_step=2)
    assert arguments["Fn_compute_blocks"] == 3
    assert arguments["Bn_compute_blocks"] == 32 - 3 - 15
    assert arguments["steps_computation_mask"] == [1, 1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1]
    assert arguments["steps_computation_policy"] == "static"
    assert arguments["enable_separate_cfg"] is True
    assert arguments["force_refresh_step_hint"] == 24


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (CachePolicy.four_field(0, 2, 0, 2), "block 0.*nearest.*blocks 1..1 at 4 steps"),
        (CachePolicy.explicit({1: [(1, 2)], 2: [(1, 3)]}, 9), "has 2;.*nearest.*blocks 1..1 at 2"),
        (CachePolicy.explicit({3: [(1, 3)], 5: [(1, 3)]}, 9, order=1), "step 3.*blocks 1..2 at 1"),
        (CachePolicy.explicit({}, 9), "never reuses"),
        (CachePolicy.explicit({2: [(1, 3)]}, 9, guidance=GuidancePlan((4,))), "reuses guidance"),
        (CachePolicy.four_field(3, 2, 0, 2), "beyond"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_nearest(policy: CachePolicy, message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        cache_dit_arguments(policy, 4, 9)


def test_sglang_gets_the_mask_as_runs() -> None:
    policy = CachePolicy.explicit(RUNS, STEPS, order=1)
    values = sglang_environment(policy, 4, STEPS)
    computed = [int(n) for n in values["SGLANG_CACHE_DIT_SCM_COMPUTE_BINS"].split(",")]
    reused = [int(n) for n in values["SGLANG_CACHE_DIT_SCM_CACHE_BINS"].split(",")]
    mask = list(
        chain.from_iterable([1] * c + [0] * r for c, r in zip(computed, reused, strict=True))
    )
    assert mask == cache_dit_arguments(policy, 4, STEPS)["steps_computation_mask"]
    assert (values["SGLANG_CACHE_DIT_FN"], values["SGLANG_CACHE_DIT_BN"]) == ("1", "1")
    assert values["SGLANG_CACHE_DIT_TAYLORSEER"] == "true"


def calls(step: int, video: int, count: int) -> list[dict[str, Tensor]]:
    """What the transformer is called with at a step: a batch of two, or each in turn."""
    case = load_file(GOLDEN / "case_a_video.safetensors")
    generator = torch.Generator().manual_seed(100 * video + step)
    batch = {
        "hidden_states": torch.randn(case["in.hidden_states"].shape, generator=generator),
        "timestep": torch.full((len(case["in.hidden_states"]),), 999.0 - 90 * step),
        "encoder_hidden_states": case["in.encoder_hidden_states"],
        "encoder_attention_mask": case["in.encoder_attention_mask"],
    }
    rows = [slice(None)] if count == 1 else [slice(0, 1), slice(1, 2)]
    return [{name: value[row] for name, value in batch.items()} for row in rows]


def model() -> OpenSoraT2V:
    return OpenSoraT2V.from_pretrained(GOLDEN / "main").eval()


def by_cache_dit(cache_dit: Any, path: Path, count: int) -> list[Tensor]:
    transformer = model()
    adapter = cache_dit.BlockAdapter(
        transformer=transformer,
        blocks=transformer.transformer_blocks,
        forward_pattern=cache_dit.ForwardPattern.Pattern_3,
        check_forward_pattern=False,
    )
    loaded = cache_dit.load_configs(str(path))
    cache_dit.enable_cache(
        adapter,
        cache_config=loaded["cache_config"],
        calibrator_config=loaded["calibrator_config"],
    )
    try:
        return [
            transformer(**one).sample
            for video in range(VIDEOS)
            for step in range(STEPS)
            for one in calls(step, video, count)
        ]
    finally:
        cache_dit.disable_cache(adapter)


def by_block_cache(policy: CachePolicy, count: int) -> list[Tensor]:
    transformer = model()
    cache = BlockCache(policy)
    found = []
    for video in range(VIDEOS):
        cache.reset()
        for step in range(STEPS):
            for branch, one in enumerate(calls(step, video, count)):
                found.append(transformer(**one, blocks=cache.at(step, str(branch))).sample)
    return found


@pytest.mark.parametrize("count", [1, 2], ids=["one call a step", "two calls a step"])
@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [
        (CachePolicy.four_field(1, 2, 3, 2), 0.0),
        (CachePolicy.explicit(RUNS, STEPS), 0.0),
        # The same forecast, put together in another order: not the same to the last bit.
        (CachePolicy.explicit(RUNS, STEPS, order=1), 1e-5),
    ],
    ids=["four fields", "free", "forecast"],
)
def test_cache_dit_does_the_same_for_two_videos(
    tmp_path: Path, policy: CachePolicy, tolerance: float, count: int
) -> None:
    cache_dit = pytest.importorskip("cache_dit")
    path = tmp_path / "cache.yaml"
    path.write_text(yaml.safe_dump(cache_dit_config(policy, 4, STEPS, calls_per_step=count)))
    with torch.no_grad():
        theirs, ours = by_cache_dit(cache_dit, path, count), by_block_cache(policy, count)
        transformer = model()
        plain = [
            transformer(**one).sample if policy.reuse_ranges(step) else None
            for step in range(STEPS)
            for one in calls(step, 0, count)
        ]
    worst = max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))
    assert worst <= tolerance
    # The policy does something, or the comparison would say nothing.
    changed = [
        float((a - b).abs().max()) for a, b in zip(ours, plain, strict=False) if b is not None
    ]
    assert min(changed) > 0.1


def test_cache_dit_makes_the_mask_that_sglang_asks_it_for() -> None:
    cache_dit = pytest.importorskip("cache_dit")
    policy = CachePolicy.four_field(1, 2, 3, 2)
    values = sglang_environment(policy, 4, 12)
    bins = [
        [int(n) for n in values[f"SGLANG_CACHE_DIT_SCM_{kind}_BINS"].split(",")]
        for kind in ("COMPUTE", "CACHE")
    ]
    mask = cache_dit.steps_mask(compute_bins=bins[0], cache_bins=bins[1], total_steps=12)
    assert mask == cache_dit_arguments(policy, 4, 12)["steps_computation_mask"]
