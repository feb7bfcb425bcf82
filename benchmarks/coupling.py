"""Section `noise`: how near fewer steps stay to the full length, with coupled and other noise.

Uniform schedules; each kind of noise against the full-length video made with the same kind.
"""

from __future__ import annotations

from typing import Any

from benchmarks.lab import Lab
from osp_opt.jobs.generation import Request, VideoMaker
from osp_opt.options import SampleOptions
from osp_opt.parallel import Parallel
from osp_opt.quality.intervals import mean_ci
from osp_opt.quality.metrics import MAX_PSNR, psnr
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.worker import WorkerContext

__all__ = ["run"]

KINDS = ("coupled", "independent")


def run(lab: Lab) -> dict[str, Any]:
    """PSNR to the full length for every length and kind of noise, on fresh prompts."""
    context = WorkerContext(lab.device, Parallel(), lab.work, lab.said)
    requests = lab.judging(lab.size.noise_prompts)
    rows = []
    for kind in KINDS:
        options = SampleOptions(**lab.common, workdir=lab.work, noise=kind)
        maker = VideoMaker(options, context)
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
        full = maker.decode(maker.denoise(request, lab.reference).latents)
        found = {}
        for length in lab.size.lengths:
            made = maker.denoise(request, TimestepSchedule.uniform(length))
            found[f"{length}"] = min(psnr(maker.decode(made.latents), full), MAX_PSNR)
        return found

    lengths = " ".join(f"{length}" for length in lab.size.lengths)
    return lab.remembered(f"noise {kind} {lengths} {request.seed} {request.prompt}", measure)
