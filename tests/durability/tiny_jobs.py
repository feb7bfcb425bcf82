"""Options of tiny jobs, one per command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from osp_opt.options import (
    CalibrateOptions,
    EvaluateOptions,
    SampleOptions,
    SearchCacheOptions,
    SearchStepsOptions,
)

PROMPTS = ("a red ball", "two boats")
FRESH = ("a green kite", "a slow train", "an old clock", "one cloud")


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
