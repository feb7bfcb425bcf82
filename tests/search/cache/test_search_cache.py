"""`search-cache` end to end on random weights: delivers a ratio, records why, resumes, refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from running import Job

from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import CalibrationError, PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration import Calibration
from osp_opt.options import CalibrateOptions, OptimizeOptions, SampleOptions, SearchCacheOptions

STEPS = 8


@pytest.fixture
def calibrated(model_flags: dict[str, Any], run_job: Job) -> dict[str, Any]:
    """The flags, after a calibration of two videos."""
    prompts = ("a green tree", "a boat")
    run_job(CalibrateOptions(steps=STEPS, text_prompt=prompts, **model_flags))
    return model_flags


def options(flags: dict[str, Any], **more: Any) -> SearchCacheOptions:
    # A wall clock on a busy machine may miss any ratio: --force writes what was measured.
    given = {"steps": STEPS, "ratio": 1.05, "verify": True, "verify_prompts": 2, "force": True}
    values = {**given, **flags, **more}
    return SearchCacheOptions(**{k: v for k, v in values.items() if v is not None})


def test_the_winner_is_written_with_its_measurements_and_can_be_sampled(
    calibrated: dict[str, Any], run_job: Job
) -> None:
    wanted = options(calibrated, budget=30.0, policy="four-field")
    printed = run_job(wanted)
    path = wanted.run_dir / "dit_cache_config.json"
    policy = CachePolicy.from_file(path)
    assert policy.is_four_field
    assert set(json.loads(path.read_text())) == {
        "cache_block_start",
        "cache_num_blocks",
        "cache_step_start",
        "cache_step_interval",
    }
    policy.validate(4, STEPS)
    meta = read_meta(path)
    assert meta is not None
    assert meta["setting"]["steps"] == STEPS
    assert meta["predicted_speedup"] >= 1.05
    assert len(meta["block_times_seconds"]["blocks"]) == 4
    measured = meta["measured"]
    assert meta["predictor"]["finalists"] >= 1
    assert len(meta["verified_on"]) == 2
    assert measured["speedup"]["count"] == 2
    assert 0 <= measured["latent_mse"] < 10
    assert {v["prompt"] for v in meta["verified_on"]}.isdisjoint({"a green tree", "a boat"})
    for words in ("measured speed-up", "PSNR", "to choose", "next: osp-opt sample"):
        assert words in printed
    # One change of both branches: 2 latent frames of 16x16 pixels are 2 tokens, 24 wide, float32.
    assert f"memory for reused changes: {2 * 2 * 24 * 4 / 2**20:.3g} MiB" in printed
    printed = run_job(SampleOptions(steps=STEPS, cache=path, text_prompt=("a hat",), **calibrated))
    assert "warning" not in printed, "the sidecar fits"


def test_a_second_run_measures_nothing_again(calibrated: dict[str, Any], run_job: Job) -> None:
    """The ledger holds all: a killed search goes on where it was, and ends with the same file."""
    wanted = options(calibrated)
    run_job(wanted)
    ledger, path = wanted.run_dir / "trials.jsonl", wanted.policy_path
    before, policy, meta = ledger.read_bytes(), path.read_bytes(), read_meta(path)
    path.unlink()
    run_job(wanted)
    assert ledger.read_bytes() == before
    assert path.read_bytes() == policy
    again = read_meta(path)
    assert meta is not None
    assert again is not None
    assert {**again, "generations_spent": 0} == {**meta, "generations_spent": 0}

    lines = before.splitlines(keepends=True)
    kept = b"".join(lines[: len(lines) // 2])
    ledger.write_bytes(kept + lines[-1][:9])  # killed while writing
    path.unlink()
    run_job(wanted)
    CachePolicy.from_file(path).validate(4, STEPS)
    after = ledger.read_bytes()
    assert after.startswith(kept)
    keys = [json.dumps(json.loads(line)["key"]) for line in after.splitlines()]
    assert len(set(keys)) == len(keys), "nothing is measured twice"


def test_without_verification_nothing_is_sampled(calibrated: dict[str, Any], run_job: Job) -> None:
    wanted = options(calibrated, verify=False, policy="free", ratio=1.1)
    printed = run_job(wanted)
    assert "not verified by sampling" in printed
    assert "only osp-opt reads this form" in printed
    assert not (wanted.run_dir / "baseline").exists()
    policy = CachePolicy.from_file(wanted.policy_path)
    assert policy.speedup(4, STEPS) > 1.1
    policy.validate(4, STEPS)


def test_the_fastest_policy_within_a_loss(calibrated: dict[str, Any], run_job: Job) -> None:
    wanted = options(calibrated, max_loss=0.9, verify_prompts=1, ratio=None)
    printed = run_job(wanted)
    assert "undecided: loss by SSIM" in printed, "one fresh prompt decides nothing"
    meta = read_meta(wanted.policy_path)
    assert meta is not None
    assert meta["measured"]["loss"]["share"]["count"] == 1


def test_what_cannot_be_done_is_refused(calibrated: dict[str, Any], run_job: Job) -> None:
    with pytest.raises(PolicyError, match=r"--ratio 19.*largest possible ratio is \d"):
        run_job(options(calibrated, ratio=19.0))
    wanted = options(calibrated)
    assert not wanted.policy_path.exists()
    with pytest.raises(CalibrationError, match="nowhere: holds no calibration"):
        run_job(options(calibrated, calibration=calibrated["workdir"] / "nowhere"))


def test_statistics_of_fewer_blocks_are_refused(calibrated: dict[str, Any], run_job: Job) -> None:
    wanted = options(calibrated)
    file = wanted.calibration_dir / "calibration.safetensors"
    whole = Calibration.load(file)
    cut = {
        name: getattr(whole, name)[..., :-1, :-1] for name in ("block_gram", "guided_block_gram")
    }
    replace(whole, **cut, signals=None).save(file)
    with pytest.raises(CalibrationError, match="recorded on 3 blocks and the model has 4"):
        run_job(wanted)
    recipe = OptimizeOptions(speedup=2.0, force=True, **calibrated)
    with pytest.raises(CalibrationError, match="recorded on 3 blocks and the model has 4"):
        run_job(recipe)
