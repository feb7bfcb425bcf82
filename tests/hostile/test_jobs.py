"""Damaged files given to the commands that sample, in this process: videos, or one line."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from commands import run_job
from damage import damaged, swapped_text
from hypothesis import HealthCheck, given, settings

from osp_opt.cache.policy import CachePolicy
from osp_opt.options import CalibrateOptions, JobOptions, SampleOptions, SearchStepsOptions
from osp_opt.sampling.schedule import TimestepSchedule

TRIES = int(os.environ.get("OSP_OPT_MUTANTS", "40"))
"""Damaged files in all; `make durability` tries 1,000."""

MODEL = (
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "defaults.json",
    "transformer/diffusion_pytorch_model.safetensors",
)
GIVEN = (
    "schedule.txt",
    "schedule.txt.meta.json",
    "cache.json",
    "cache.json.meta.json",
    "prompts.json",
    "out/manifest.json",
    "out/001-*.mp4.meta.json",
    "out/.osp-opt/sample/options.json",
)
SEARCHED = (
    "work/calibration/calibration.safetensors",
    "work/calibration/manifest.json",
    "work/calibration.json",
    "work/search-steps/options.json",
    "work/search-steps/trials.jsonl",
)


@pytest.fixture(scope="module")
def place(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a schedule, a cache and prompts, and what all commands left of them."""
    place = tmp_path_factory.mktemp("jobs")
    shutil.copytree(tiny_checkpoint, place, dirs_exist_ok=True)
    TimestepSchedule((999.0, 500.0, 200.0)).save(place / "schedule.txt")
    CachePolicy.explicit({1: [(0, 2)]}, 3).save(place / "cache.json")
    (place / "prompts.json").write_text(json.dumps([{"prompt": "a"}]))
    for options in (sample(place), calibrate(place), search(place)):
        done = run_job(options)
        assert done.code == 0, done.err
    setting = json.loads((place / "out" / "manifest.json").read_text())["takes"][0]["setting"]
    for name in ("schedule.txt", "cache.json"):
        (place / f"{name}.meta.json").write_text(json.dumps({"setting": setting}))
    return place


def model(place: Path) -> dict[str, Any]:
    return {
        "model_path": str(place / "transformer"),
        "device": "cpu",
        "workdir": place / "work",
        "text_prompt": ("a", "b"),
    }


def sample(place: Path) -> SampleOptions:
    flags = {**model(place), "text_prompt": (), "prompt_file": place / "prompts.json"}
    files = {"schedule": place / "schedule.txt", "cache": place / "cache.json"}
    return SampleOptions(**flags, **files, out=place / "out")


def calibrate(place: Path) -> CalibrateOptions:
    return CalibrateOptions(**model(place), steps=6)


def search(place: Path) -> SearchStepsOptions:
    return SearchStepsOptions(**model(place), steps=(3,), budget=2, verify=True, verify_prompts=1)


def attack(place: Path, name: str, options: JobOptions, tries: int) -> None:
    """Run a job with many other contents of one of its files."""
    (path,) = place.glob(name)
    before = path.read_bytes()
    if path.suffix == ".safetensors":
        contents = damaged(before)
    elif path.suffix == ".jsonl":
        first, *rest = before.splitlines(keepends=True)
        contents = swapped_text(json.loads(first)).map(lambda t: t + b"\n" + b"".join(rest))
    else:
        contents = swapped_text(json.loads(before)) | damaged(before)

    @settings(
        max_examples=max(tries, 2),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(contents)
    def try_it(content: bytes) -> None:
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outcome = run_job(options)
        assert outcome.is_clean, (path.name, content[:1000], outcome)

    try:
        try_it()
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("name", [*MODEL, *GIVEN])
def test_sampling_with_a_damaged_file(name: str, place: Path) -> None:
    attack(place, name, sample(place), TRIES // 30)


@pytest.mark.parametrize("name", SEARCHED)
def test_a_search_with_a_damaged_file(name: str, place: Path) -> None:
    attack(place, name, search(place), TRIES // 30)
