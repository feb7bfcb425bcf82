"""`osp-opt calibrate`: sample with the original model and record what the searches need.

In the run folder: `videos/`, `latents/` (float32, as the sampler left them), `statistics/` (one
calibration file per video, written last: where it is, the video is finished), and, made of them,
`calibration.safetensors` and `manifest.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from osp_opt.base.artifacts import atomic_write_bytes, write_json
from osp_opt.base.errors import CalibrationError, FileError, OptionError
from osp_opt.base.video import write_image, write_video
from osp_opt.calibration import Calibration
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.generate.maker import Request, VideoMaker
from osp_opt.generate.memory import report_memory
from osp_opt.generate.prompt_sets import default_prompts
from osp_opt.generate.prompts import given_prompts
from osp_opt.options import CALIBRATION_FILE, CalibrateOptions
from osp_opt.sampling.samplers import custom_timestep_samplers, make_scheduler, set_schedule
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.context import WorkerContext

__all__ = ["recorded_schedule", "run"]

BUNDLED_PROMPTS = 8  # used when none are given and --num-prompts is not either
# Steps; what the cache search asks about. Longer lags follow from the two nearest: beyond 2 the
# power law errs half as much with lag 4 recorded.
LAGS = (1, 2, 4)


@dataclass(frozen=True)
class _Video:
    """A video to record, and its files."""

    request: Request
    folder: Path
    number: int
    suffix: str

    @property
    def name(self) -> str:
        return f"{self.number:03d}-{self.request.slug}"

    @property
    def video(self) -> Path:
        return self.folder / "videos" / f"{self.name}{self.suffix}"

    @property
    def latents(self) -> Path:
        return self.folder / "latents" / f"{self.name}.safetensors"

    @property
    def statistics(self) -> Path:
        return self.folder / "statistics" / f"{self.name}.safetensors"


def run(options: CalibrateOptions, context: WorkerContext) -> None:
    """Record the videos that are not there yet, then join their statistics."""
    if context.parallel.layout.replica_size > 1:
        raise OptionError(
            f"--parallel {options.parallel}: calibrate records every video on one process; "
            f"use --parallel dp={context.parallel.world_size}"
        )
    schedule = recorded_schedule(options.sampler, options.steps)
    maker = VideoMaker(options, context)
    metadata = _metadata(options, maker, schedule)
    suffix = ".png" if maker.shape.num_frames == 1 else ".mp4"
    videos = [
        _Video(request, context.run_dir, number, suffix)
        for number, request in enumerate(_requests(options), start=1)
    ]
    todo = [v for v in videos if _finished(v, metadata) is None]
    todo = context.parallel.broadcast_object(todo)
    if len(todo) < len(videos):
        context.progress.say(f"{len(videos) - len(todo)} of {len(videos)} videos are there already")
    _record(context.parallel.share(todo), maker, schedule, metadata, context)
    context.parallel.barrier()
    if context.parallel.is_main:
        _join(videos, metadata, maker, context)
    report_memory(maker, context)


def recorded_schedule(sampler: str, steps: int) -> TimestepSchedule:
    """The levels at which `sampler` evaluates the model in `steps` even steps.

    Raises OptionError for samplers that cannot be told their timesteps or evaluate the model
    twice a step: their predictions do not lie on one level each.
    """
    even = TimestepSchedule(TimestepSchedule.uniform(steps).timesteps)
    if sampler in custom_timestep_samplers():
        scheduler = make_scheduler(sampler)
        set_schedule(scheduler, even)
        levels = tuple(float(t) for t in scheduler.timesteps)
        if len(set(levels)) == len(levels) == steps:
            return TimestepSchedule(levels)
    raise OptionError(
        f"--sampler {sampler}: calibrate needs one model evaluation at each of its levels; "
        "calibrate with EulerDiscrete or EulerAncestralDiscrete, the result serves this one too"
    )


def _requests(options: CalibrateOptions) -> list[Request]:
    prompts = given_prompts(options)
    if prompts is None:
        prompts = default_prompts(options, "calibration")[: options.num_prompts or BUNDLED_PROMPTS]
    return [Request(prompt, options.seed) for prompt in prompts[: options.num_prompts]]


def _metadata(
    options: CalibrateOptions, maker: VideoMaker, schedule: TimestepSchedule
) -> dict[str, Any]:
    """What decides the statistics besides prompt and seed; the same for all videos."""
    return {
        "setting": maker.setting(schedule).as_json(),
        "num_blocks": maker.num_blocks,
        "noise": options.noise,
        "negative_prompt": maker.negative_prompt,
        "max_sequence_length": maker.max_sequence_length,
        "fps": maker.fps,
    }


def _finished(video: _Video, metadata: dict[str, Any]) -> Calibration | None:
    """The statistics of a video that was recorded in this very way, or None."""
    if not (video.statistics.is_file() and video.latents.is_file() and video.video.is_file()):
        return None
    try:
        found = Calibration.load(video.statistics)
    except (CalibrationError, FileError):
        return None  # damaged: recorded again
    same = (found.prompts, found.seeds) == ((video.request.prompt,), (video.request.seed,))
    same = same and found.lags == LAGS
    return found if same and found.metadata == metadata else None


def _record(
    videos: list[_Video],
    maker: VideoMaker,
    schedule: TimestepSchedule,
    metadata: dict[str, Any],
    context: WorkerContext,
) -> None:
    recorder = CalibrationRecorder(
        len(schedule),
        maker.num_blocks,
        guidance_scale=maker.guidance_scale if maker.guided else None,
        lags=LAGS,
    )
    maker.foresee(video.request.prompt for video in videos)
    with context.progress.task("calibrating", len(videos) * len(schedule)) as task:
        for video in videos:
            recorder.reset()
            made = maker.denoise(
                video.request, schedule, callback=lambda *_: task.advance(), recorder=recorder
            )
            frames = maker.decode(made.latents)
            latents = made.latents[0].float().cpu().contiguous()
            if not torch.isfinite(latents).all():
                raise CalibrationError(
                    f"the video of {video.request.prompt!r} came out as NaN or infinity; "
                    "try --dtype float32"
                )
            atomic_write_bytes(video.latents, save({"latents": latents}))
            if len(frames) == 1:
                write_image(video.video, frames[0])
            else:
                write_video(video.video, frames, maker.fps)
            statistics = Calibration.of_video(
                recorder.result(),
                timesteps=np.array(schedule.timesteps),
                sigmas=schedule.sigmas[:-1],
                lags=LAGS,
                prompt=video.request.prompt,
                seed=video.request.seed,
                metadata=metadata,
            )
            statistics.save(video.statistics)
            context.progress.say(f"{video.video}: denoised in {made.seconds:.2f} s")


def _join(
    videos: list[_Video], metadata: dict[str, Any], maker: VideoMaker, context: WorkerContext
) -> None:
    parts = []
    for video in videos:
        part = _finished(video, metadata)
        if part is None:
            raise CalibrationError(f"{video.statistics}: gone or damaged; run calibrate again")
        parts.append(part)
    place = context.run_dir / CALIBRATION_FILE
    Calibration.merge(parts).save(place)
    entries = [
        {
            "file": str(video.video.relative_to(context.run_dir)),
            "latents": str(video.latents.relative_to(context.run_dir)),
            "prompt": video.request.prompt,
            "seed": video.request.seed,
        }
        for video in videos
    ]
    write_json(
        context.run_dir / "manifest.json", {"command": "calibrate", **metadata, "videos": entries}
    )
    size = place.stat().st_size / 1e6
    context.progress.say(f"calibration of {len(videos)} videos: {place} ({size:.1f} MB)")
