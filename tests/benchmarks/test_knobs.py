"""What puts peers' thresholds where they are compared: the share of blocks that really ran."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.contest import Runtime
from benchmarks.knobs import block_speedup
from benchmarks.lab import Lab
from benchmarks.size import quick_size
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache

STEPS = 4


def test_runs_of_blocks_are_counted(tmp_path: Path) -> None:
    """As the bundled model is loaded, with fused projections."""
    lab = Lab(tmp_path, replace(quick_size(), steps=STEPS), seed=1, device="cpu")
    assert block_speedup(lab, nullcontext(Runtime())) == 1.0
    policy = CachePolicy.four_field(2, 8, 0, 2)
    cached = block_speedup(lab, nullcontext(Runtime(cache=BlockCache(policy))))
    assert cached == pytest.approx(policy.speedup(12, STEPS))
