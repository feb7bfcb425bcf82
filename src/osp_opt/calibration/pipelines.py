"""Recording a stranger's pipeline: the same statistics, of its own steps, by hooks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from osp_opt.base.errors import OptionError, ScheduleError
from osp_opt.calibration.recorder import LAGS, CalibrationRecorder
from osp_opt.calibration.statistics import Calibration
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline, StepSeen
from osp_opt.pipelines.requirements import MIN_STEPS

__all__ = ["record_pipeline"]


def record_pipeline(
    pipeline: DiffusersPipeline,
    prompts: Sequence[str],
    steps: int,
    *,
    seed: int = 42,
    lags: Sequence[int] = LAGS,
) -> Calibration:
    """Sample one video per prompt in `steps` of the pipeline's own steps, and record them.

    No video is changed and no network evaluation added, but one step that shows how many guidance
    branches there are. The levels are the scheduler's, in the VE scaling (`sigmas`) and as
    timesteps (1000 s for flow matching); `metadata["levels"]` says which are which.

    Raises OptionError without prompts or for fewer than 9 steps; ScheduleError for a scheduler that
    draws fresh noise, whose runs of different lengths are different videos; CalibrationError for
    transformers that cannot be watched.
    """
    if not prompts:
        raise OptionError("no prompts to record")
    if steps < MIN_STEPS:
        raise OptionError(f"{steps} steps are too few to choose from; record {MIN_STEPS} or more")
    if pipeline.kind.ancestral:
        raise ScheduleError(
            f"{pipeline.steering.name} draws fresh noise at every step, so that runs of different "
            "lengths are different videos; use a deterministic scheduler"
        )
    schedule = pipeline.schedule(steps)
    recorder = CalibrationRecorder(
        steps,
        pipeline.num_blocks,
        guidance_scale=pipeline.guidance_scale if pipeline.branches() == 2 else None,
        lags=lags,
    )

    def keep(step: StepSeen) -> None:
        recorder.record_denoised(step.index, step.denoised)

    parts = []
    for prompt in prompts:
        recorder.reset()
        made = pipeline.denoise(prompt, seed, steps, watch=recorder, on_step=keep)
        parts.append(
            Calibration.of_video(
                recorder.result(),
                timesteps=np.array(schedule.timesteps),
                sigmas=schedule.sigmas[:-1],
                lags=lags,
                prompt=prompt,
                seed=seed,
                metadata={
                    "pipeline": pipeline.name,
                    "scheduler": pipeline.steering.name,
                    "levels": schedule.scale.as_json(),
                },
                seconds=made.seconds,
            )
        )
    return Calibration.merge(parts)
