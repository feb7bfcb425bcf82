"""The second model that is shipped with the benchmarks, and what its page says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers.pipelines.wan.pipeline_wan import WanPipeline

from benchmarks.flow.bench import MODEL, Bench, Entrant
from benchmarks.flow.table import render
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.tiny.checker import check

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
PROMPT = "a red circle moves left on a black background"
MOST_BYTES = 8 * 2**20


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("flow"), seed=3)


def test_the_model_is_small() -> None:
    assert sum(file.stat().st_size for file in MODEL.rglob("*") if file.is_file()) <= MOST_BYTES


def test_diffusers_alone_loads_it_and_makes_the_same_video(bench: Bench) -> None:
    pipe = WanPipeline.from_pretrained(MODEL)
    call = yaml.safe_load((MODEL / "call.yaml").read_text())
    generator = torch.Generator("cpu").manual_seed(3)
    made = pipe(PROMPT, num_inference_steps=12, generator=generator, **call)
    frames = (np.asarray(made.frames[0]).clip(0.0, 1.0) * 255.0).astype(np.uint8)
    ours = bench.pipeline.decode(bench.pipeline.denoise(PROMPT, 3, 12).latents)
    assert np.array_equal(frames, ours)
    right = check(frames, PROMPT).right()
    assert right["color"]
    assert right["background"]


def test_work_is_what_a_policy_leaves(bench: Bench) -> None:
    """All calls cost alike, so that a run with fewer of them makes as much less of it."""
    plan = GuidancePlan.every(2, 6)
    policy = CachePolicy.explicit({}, 6, guidance=plan)
    _, plain = bench.run(Entrant("plain", 6), PROMPT)
    _, resting = bench.run(Entrant("resting", 6, cache=policy), PROMPT)
    assert plain / resting == pytest.approx(12 / (12 - len(plan.steps)))
    assert bench.plain_work == pytest.approx(plain * 50 / 6)


def test_the_page_is_of_the_results() -> None:
    results = json.loads((RESULTS / "flow.json").read_text())
    assert (RESULTS / "flow.md").read_text() == render(results)
