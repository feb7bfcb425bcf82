"""MagCache and TeaCache beside a policy: their rules against the peers' own, and `--also`."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks import MagCacheConfig
from pydantic import ValidationError
from running import Job
from torch import Tensor

from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import CalibrationError
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.calibration import Calibration
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.options import CALIBRATION_FILE, CalibrateOptions, SearchCacheOptions
from osp_opt.quality.intervals import ratio_ci
from osp_opt.sampling.denoiser import run_blocks
from osp_opt.search.cache.rival_rules import MagCacheRule, TeaCacheRule, rule_of
from osp_opt.search.cache.rivals import Rival
from osp_opt.search.evidence import evidence_of
from osp_opt.tiny.prompts import BUNDLED

STEPS = 8


class Run:
    """The bundled transformer over eight steps, of a batch of two."""

    def __init__(self) -> None:
        self.model = OpenSoraT2V.from_pretrained(BUNDLED / "transformer").eval()
        self.blocks = len(self.model.transformer_blocks)
        generator = torch.Generator().manual_seed(0)
        channels = self.model.config.caption_channels
        self.text = torch.randn(2, 5, channels, generator=generator)
        noise = torch.randn(2, STEPS + 1, 4, 2, 8, 8, generator=generator)
        self.latents = noise[:, :1] + 0.3 * noise[:, 1:].cumsum(1)

    @torch.no_grad()
    def __call__(self, loops: Any = None) -> list[Tensor]:
        made = []
        for step in range(STEPS):
            with self.model.cache_context("both"):
                out = self.model(
                    self.latents[:, step],
                    torch.tensor(999.0 - 120 * step),
                    self.text,
                    blocks=run_blocks if loops is None else loops.at(step),
                )
            made.append(out.sample)
        return made


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


@pytest.mark.parametrize("threshold", [0.05, 0.5])
def test_magcache_is_what_diffusers_runs(run: Run, threshold: float) -> None:
    ratios = [1.0, *np.random.default_rng(1).normal(1.0, 0.02, STEPS - 1)]
    policy = MagCacheRule(ratios, run.blocks).expected(threshold)
    run.model.enable_cache(
        MagCacheConfig(threshold=threshold, num_inference_steps=STEPS, mag_ratios=ratios)
    )
    try:
        expected = run()
    finally:
        run.model.disable_cache()
    found = run(BlockCache(policy))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    reused = policy.reused_blocks(STEPS) // run.blocks
    assert 0 < reused < STEPS
    different = [not torch.equal(a, b) for a, b in zip(found, run(), strict=True)]
    assert sum(different) == reused


def tea_by_hand(run: Run, polynomial: list[float], threshold: float) -> tuple[list[Tensor], list]:
    """TeaCache by torch's hooks: every block runs, a reused step's result is put in its place."""
    first, last = run.model.transformer_blocks[0], run.model.transformer_blocks[-1]
    state: dict[str, Any] = {"step": -1, "sum": 0.0, "skip": [], "before": None}

    def entry(block: Any, args: Any) -> None:
        state["x"], state["step"] = args[0], state["step"] + 1

    def look(layer: Any, args: Any) -> None:
        now, before = args[0], state["before"]
        state["before"] = now
        change = 0.0 if before is None else float((now - before).abs().mean() / before.abs().mean())
        powers = reversed(range(len(polynomial)))
        state["sum"] += sum(c * change**p for c, p in zip(polynomial, powers, strict=True))
        if state["step"] in (0, STEPS - 1) or state["sum"] >= threshold:
            state["sum"], state["now"] = 0.0, False
        else:
            state["now"] = True
            state["skip"].append(state["step"])

    def leave(block: Any, args: Any, out: Tensor) -> Tensor | None:
        if state["now"]:
            return state["x"] + state["residual"]
        state["residual"] = out - state["x"]
        return None

    hooks = [
        first.register_forward_pre_hook(entry),
        first.attn1.register_forward_pre_hook(look),
        last.register_forward_hook(leave),
    ]
    made = run()
    for hook in hooks:
        hook.remove()
    return made, state["skip"]


def test_teacache_equals_hooks_written_by_hand(run: Run) -> None:
    polynomial = [0.5, -0.2, 0.1, 1.2, 0.01]
    expected, skipped = tea_by_hand(run, polynomial, 0.45)
    assert 1 < len(skipped) < STEPS - 2
    made: list[Tensor] = []
    policy = TeaCacheRule(polynomial, [0.1] * (STEPS - 1), run.blocks).of_video(
        0.45, lambda loops: made.extend(run(loops))
    )
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=True))
    assert [s for s in range(STEPS) if policy.reuse_ranges(s)] == skipped
    # which is what a cache of our own makes of that plan
    again = run(BlockCache(policy))
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


@pytest.mark.parametrize("name", ["magcache", "teacache"])
def test_a_larger_threshold_reuses_more(name: str) -> None:
    rule: Any = (
        MagCacheRule([1.0] + [0.98] * 19, 4)
        if name == "magcache"
        else TeaCacheRule([0.0, 0.0, 0.0, 1.0, 0.0], [0.05] * 19, 4)
    )
    reused = [rule.expected(t).reused_blocks(20) // 4 for t in (0.0, 0.06, 0.2, 1e4)]
    assert reused == sorted(reused)
    # MagCache computes the first fifth and every fourth step, TeaCache the first and the last.
    assert reused[0] == 0
    assert reused[-1] == (12 if name == "magcache" else 18)


@pytest.fixture
def calibrated(model_flags: dict[str, Any], run_job: Job) -> dict[str, Any]:
    prompts = ("a green tree", "a boat")
    run_job(CalibrateOptions(steps=STEPS, text_prompt=prompts, **model_flags))
    return model_flags


def test_a_search_judges_them_on_the_same_fresh_videos(
    calibrated: dict[str, Any], run_job: Job
) -> None:
    wanted = SearchCacheOptions(
        **calibrated, steps=STEPS, ratio=1.05, verify=True, verify_prompts=2, force=True,
        budget=2.0, policy="four-field", also="magcache,teacache",
    )  # fmt: skip
    printed = run_job(wanted)
    meta = read_meta(wanted.policy_path) or {}
    assert [rival["name"] for rival in meta["rivals"]] == ["magcache", "teacache"]
    ledger = wanted.run_dir / "trials.jsonl"
    rows = [json.loads(line) for line in ledger.read_text().splitlines()]
    fresh = {video["prompt"] for video in meta["verified_on"]}
    frames = [row for row in rows if row["key"]["what"] == "frames"]
    assert {row["key"]["prompt"] for row in frames} == fresh
    for rival in meta["rivals"]:
        assert rival["name"] in printed
        assert rival["measured"]["psnr"]["count"] == rival["error_ratio"]["count"] == 2
        assert rival["measured"]["speedup"]["count"] == 2
        # The error told is the geometric mean of what the ledger holds.
        ratio = rival["measured"]["latent_mse"] / meta["measured"]["latent_mse"]
        assert rival["error_ratio"]["estimate"] == pytest.approx(ratio, rel=1e-6)
        assert rival["verdict"] in printed
    before = ledger.read_bytes()
    wanted.policy_path.unlink()
    run_job(wanted)
    assert ledger.read_bytes() == before, "nothing is measured again"
    assert (read_meta(wanted.policy_path) or {})["rivals"] == meta["rivals"]


def test_what_cannot_be_compared_is_refused(
    calibrated: dict[str, Any], run_job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match=r"--also: only sampled videos compare caches"):
        SearchCacheOptions(**calibrated, verify=False, also="magcache")
    with pytest.raises(ValidationError, match="magcache"):
        SearchCacheOptions(**calibrated, verify=True, also="magcache,deepcache")
    folder = SearchCacheOptions(**calibrated).calibration_dir
    calibration = Calibration.load(folder / CALIBRATION_FILE)
    few = calibration.timesteps[:5].tolist()
    with pytest.raises(CalibrationError, match="5 steps are too few"):
        rule_of("teacache", calibration, few, 4)
    assert isinstance(rule_of("magcache", calibration, few, 4).expected(0.1), CachePolicy)


@pytest.mark.parametrize(
    ("ratios", "as_fast", "verdict"),
    [
        ([2.0, 2.2, 1.9, 2.1, 2.0, 1.8], True, "loses more than the policy"),
        ([0.5, 0.45, 0.53, 0.5, 0.48, 0.52], True, "loses less than the policy"),
        ([0.5, 2.2, 1.0, 0.8, 1.7, 1.1], True, "not shown to lose more or less"),
        ([2.0, 2.2], True, "too few videos to say which loses less"),
        (
            [0.5, 0.45, 0.53],
            False,
            "slower than the policy, and no threshold tried made it as fast",
        ),
    ],
)
def test_the_verdict(ratios: list[float], as_fast: bool, verdict: str) -> None:
    rows = [{"psnr": 40.0 + i, "mse": 1e-4} for i in range(len(ratios))]
    rival = Rival("magcache", 0.1, evidence_of(rows, [1.3] * 3), ratio_ci(ratios), as_fast)
    assert rival.verdict.startswith(verdict)
    assert rival.line().startswith("magcache at 1.30")
    assert verdict in rival.line()
