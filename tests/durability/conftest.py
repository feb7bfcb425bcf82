"""Tiny jobs, one per command, and a server that runs them as processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import Server

from osp_opt.options import (
    CalibrateOptions,
    EvaluateOptions,
    SampleOptions,
    SearchCacheOptions,
    SearchStepsOptions,
)

PROMPTS = ("a red ball", "two boats")
FRESH = ("a green kite", "a slow train", "an old clock", "one cloud")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # a process forked from a threaded one may hang
        patch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
        made = Server(tmp_path_factory.mktemp("server"))
        made.start()
    return made


@pytest.fixture(scope="session")
def flags(tiny_checkpoint: Path) -> dict[str, Any]:
    """The model and the shape of all jobs."""
    return {
        "model_path": str(tiny_checkpoint),
        "device": "cpu",
        "num_frames": 5,
        "height": 16,
        "width": 16,
        "max_sequence_length": 16,
    }


def job(command: str, flags: dict[str, Any], workdir: Path) -> Any:
    """The options of a short run of `command` in `workdir`, where its predecessors have run."""
    fresh = {"text_prompt": FRESH, "verify": True, "verify_prompts": 2, "force": True}
    if command == "calibrate":
        return CalibrateOptions(**flags, workdir=workdir, steps=8, text_prompt=PROMPTS)
    if command == "search-steps":
        return SearchStepsOptions(**flags, **fresh, workdir=workdir, steps=(4,), budget=3)
    if command == "search-cache":
        return SearchCacheOptions(**flags, **fresh, workdir=workdir, steps=6, ratio=1.3, budget=6)
    if command == "sample":
        return SampleOptions(**flags, workdir=workdir, steps=6, text_prompt=PROMPTS)
    assert command == "evaluate"
    return EvaluateOptions(workdir=workdir, reference=workdir / "calibration", lpips=False)
