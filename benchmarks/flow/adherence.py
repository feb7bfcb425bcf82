"""Does the second model do what prompts ask, read off its videos by the checker."""

from __future__ import annotations

from typing import Any

from benchmarks.flow.bench import Bench
from osp_opt.quality.intervals import wilson
from osp_opt.tiny.checker import check
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["run"]

LENGTHS = (50, 12)


def run(bench: Bench, prompts: list[str]) -> dict[str, Any]:
    """Share of right answers per attribute, and of videos with all right, by number of steps."""
    rows = []
    for steps in LENGTHS:
        seen = [_right(bench, steps, prompt) for prompt in prompts]
        right = {
            name: wilson([float(one[name]) for one in seen]).as_json()
            for name in (*ATTRIBUTES, "all")
        }
        rows.append({"steps": steps, "right": right})
    return {"rows": rows, "prompts": len(prompts)}


def _right(bench: Bench, steps: int, prompt: str) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        made = bench.pipeline.denoise(prompt, bench.seed, steps)
        return dict(check(bench.pipeline.decode(made.latents), prompt).right())

    return bench.remembered(f"adherence {steps} {prompt}", measure)
