"""Section `samplers`: which cost finds schedules for deterministic samplers.

Each sampler is calibrated with itself. KLUB, which is made for ancestral sampling, and the cost of
the probability-flow equation plan schedules from one table; both are sampled beside uniform
spacing, against the full length of the same sampler.
"""

from __future__ import annotations

from typing import Any

from benchmarks.lab import Lab
from osp_opt.calibration import Calibration
from osp_opt.options import CALIBRATION_FILE, CalibrateOptions
from osp_opt.pipelines.maker import Request
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.quality.intervals import mean_ci, paired_difference
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.candidates import StepTable, objectives_for
from osp_opt.search.trials import schedule_key
from osp_opt.tiny.prompts import load_prompts

__all__ = ["run"]

SAMPLERS = ("EulerDiscrete", "DPMSolverMultistep")
KLUB = objectives_for("EulerAncestralDiscrete", "distribution")[0]


def run(lab: Lab) -> dict[str, Any]:
    """PSNR of every schedule to the full length, on fresh prompts."""
    requests = lab.judging(lab.size.sampler_prompts)
    rows = []
    for sampler in SAMPLERS:
        schedules = _schedules(lab, sampler)
        maker = lab.maker_with(sampler=sampler)
        found = [_of_prompt(lab, maker, schedules, request) for request in requests]
        for (length, name), schedule in schedules.items():
            key, even = schedule_key(schedule), schedule_key(schedules[length, "uniform"])
            values = [psnrs[key] for psnrs in found]
            gain = paired_difference(values, [psnrs[even] for psnrs in found])
            rows.append(
                {
                    "sampler": sampler,
                    "steps": length,
                    "schedule": name,
                    "psnr": mean_ci(values).as_json(),
                    "gain": gain.as_json(),
                }
            )
    return {"rows": rows}


def _schedules(lab: Lab, sampler: str) -> dict[tuple[int, str], TimestepSchedule]:
    options = CalibrateOptions(
        **lab.common,
        workdir=lab.work / "samplers" / sampler,
        steps=lab.size.steps,
        sampler=sampler,
        text_prompt=load_prompts("calibration")[: lab.size.calibration],
    )
    if not (options.out_dir / CALIBRATION_FILE).is_file():
        lab.run_job(options)
    table = StepTable(Calibration.load(options.out_dir / CALIBRATION_FILE), sampler)
    own = objectives_for(sampler, "video")[0]
    found: dict[tuple[int, str], TimestepSchedule] = {}
    for length in lab.size.lengths[-2:]:
        found[length, "uniform"] = table.uniform(length).schedule
        for objective in (own, KLUB):
            found[length, objective.label] = table.best(objective, length).schedule
    return found


def _of_prompt(
    lab: Lab,
    maker: VideoMaker,
    schedules: dict[tuple[int, str], TimestepSchedule],
    request: Request,
) -> dict[str, float]:
    def measure() -> dict[str, Any]:
        print(f"  {maker.options.sampler}: {request.prompt}", flush=True)
        named = {schedule_key(schedule): schedule for schedule in schedules.values()}
        return lab.distances(maker, request, named)

    names = " ".join(schedule_key(schedule) for schedule in schedules.values())
    key = f"sampler {maker.options.sampler} {names} {request.seed} {request.prompt}"
    return lab.remembered(key, measure)
