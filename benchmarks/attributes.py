"""Section `attributes`: which sampler draws what was asked, and how much moves.

Another sampler makes another video of the same prompt, so PSNR says nothing between samplers: what
counts is the distribution. The checker reads shape, colour, background and motion off each video,
and `motion` (ITU-T P.910) is compared with that of the default sampler's full length, prompt by
prompt.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.lab import Lab
from osp_opt.base.samplers import SAMPLER_KINDS
from osp_opt.pipelines.maker import Request
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.quality.intervals import ratio_ci, wilson
from osp_opt.quality.metrics import motion
from osp_opt.tiny.checker import check
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["SAMPLERS", "run"]

DEFAULT = next(iter(SAMPLER_KINDS))
SAMPLERS = (DEFAULT, "EulerDiscrete", "DDIM", "DPMSolverMultistep")
STILL = 1e-6  # motion that counts as none


def run(lab: Lab) -> dict[str, Any]:
    """Every sampler at the full length, a quarter and an eighth of it, on fresh prompts."""
    requests = lab.judging(lab.size.attribute_prompts)
    full = len(lab.reference)
    makers = {sampler: lab.maker_with(sampler=sampler) for sampler in SAMPLERS}
    seen: dict[tuple[str, int], list[dict[str, float]]] = {}
    for steps in (full, full // 4, full // 8):
        for sampler, maker in makers.items():
            seen[sampler, steps] = [_seen(lab, maker, steps, request) for request in requests]
            print(f"  {sampler}, {steps} steps", flush=True)
    moved = np.array([one["moved"] for one in seen[DEFAULT, full]]) + STILL
    rows = []
    for (sampler, steps), videos in seen.items():
        own = np.array([one["moved"] for one in videos]) + STILL
        right = {n: wilson([v[n] for v in videos]).as_json() for n in (*ATTRIBUTES, "all")}
        moves = ratio_ci((own / moved).tolist()).as_json()
        rows.append({"sampler": sampler, "steps": steps, "right": right, "moved": moves})
    return {"rows": rows, "prompts": len(requests)}


def _seen(lab: Lab, maker: VideoMaker, steps: int, request: Request) -> dict[str, float]:
    def measure() -> dict[str, Any]:
        frames = maker.decode(maker.denoise(request, maker.schedule(steps)).latents)
        read = check(frames, request.prompt).right()
        return {name: float(right) for name, right in read.items()} | {"moved": motion(frames)}

    key = f"drawn {maker.options.sampler} {steps} {request.seed} {request.prompt}"
    return lab.remembered(key, measure)
