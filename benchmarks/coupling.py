"""Section `noise`: how near fewer steps stay to the full length, with coupled and other noise.

Uniform schedules; each kind of noise against the full-length video made with the same kind.
"""

from __future__ import annotations

from typing import Any

from benchmarks.lab import Lab
from osp_opt.pipelines.maker import Request
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.quality.intervals import mean_ci
from osp_opt.sampling.schedule import TimestepSchedule

__all__ = ["run"]

KINDS = ("coupled", "independent")


def run(lab: Lab) -> dict[str, Any]:
    """PSNR to the full length for every length and kind of noise, on fresh prompts."""
    requests = lab.judging(lab.size.noise_prompts)
    rows = []
    for kind in KINDS:
        maker = lab.maker_with(noise=kind)
        found = [_of_prompt(lab, maker, kind, request) for request in requests]
        rows += [
            {
                "noise": kind,
                "steps": length,
                "psnr": mean_ci([values[f"{length}"] for values in found]).as_json(),
            }
            for length in lab.size.lengths
        ]
    return {"rows": rows}


def _of_prompt(lab: Lab, maker: VideoMaker, kind: str, request: Request) -> dict[str, float]:
    def measure() -> dict[str, Any]:
        print(f"  {kind} noise: {request.prompt}", flush=True)
        uniform = {f"{length}": TimestepSchedule.uniform(length) for length in lab.size.lengths}
        return lab.distances(maker, request, uniform)

    lengths = " ".join(f"{length}" for length in lab.size.lengths)
    return lab.remembered(f"noise {kind} {lengths} {request.seed} {request.prompt}", measure)
