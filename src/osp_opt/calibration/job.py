"""`osp-opt calibrate`: sample with the original model and record what the searches need.

In the run folder: `videos/`, `latents/` (float32, as the sampler left them), `statistics/` (one
calibration file per video), and, made of them,
`calibration.safetensors` and `manifest.json`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from osp_opt.base.artifacts import write_json
from osp_opt.base.errors import CalibrationError
from osp_opt.base.video import write_frames
from osp_opt.calibration.recorder import LAGS, CalibrationRecorder
from osp_opt.calibration.statistics import Calibration, is_of, load_whole
from osp_opt.calibration.yardstick import measure_yardstick, yardstick_work
from osp_opt.generate.manifest import add_take
from osp_opt.generate.memory import report_memory
from osp_opt.generate.prompts import default_prompts, given_prompts
from osp_opt.generate.references import load_latents, save_latents
from osp_opt.options import CALIBRATED_PROMPTS, CALIBRATION_FILE, CalibrateOptions, following
from osp_opt.pipelines.maker import Maker, Request, open_maker
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.context import WorkerContext

__all__ = ["record_calibration", "run"]


@dataclass(frozen=True)
class _Video:
    """A video to record, and its files."""

    request: Request
    folder: Path
    name: str
    suffix: str

    @property
    def video(self) -> Path:
        return self.folder / "videos" / f"{self.name}{self.suffix}"

    @property
    def latents(self) -> Path:
        return self.folder / "latents" / f"{self.name}.safetensors"

    @property
    def statistics(self) -> Path:
        return _statistics(self.folder, self.name)


def run(options: CalibrateOptions, context: WorkerContext) -> None:
    """Record the videos that are not there yet, then join their statistics."""
    maker = open_maker(options, context)
    record_calibration(options, maker, context)
    report_memory(maker, context)
    if context.parallel.is_main:
        place = options.out_dir / CALIBRATION_FILE
        videos = len(_requests(options))
        context.progress.result(
            [f"calibration of {videos} videos: {place}"],
            {"calibration": str(options.out_dir), "videos": videos},
            following(options, "search-steps", "--steps", str(max(options.steps // 3, 2))),
        )


def record_calibration(
    options: CalibrateOptions, maker: Maker, context: WorkerContext, *, last: bool = True
) -> None:
    """Make the calibration that `options` describe with `maker`, and keep it where they say.

    `last` says that the maker will be asked for no other prompts.
    Raises OptionError for a layout that cannot make them or a sampler that cannot be recorded.
    """
    schedule = maker.recorded_schedule(options.steps)
    metadata = maker.recorded_with(schedule)
    suffix = ".png" if maker.makes_images else ".mp4"
    folder = options.out_dir
    videos = context.parallel.broadcast_object(
        [
            _Video(request, folder, _free_name(folder, number, request, metadata), suffix)
            for number, request in enumerate(_requests(options), start=1)
        ]
    )
    todo = context.parallel.broadcast_object([v for v in videos if _finished(v, metadata) is None])
    if len(todo) < len(videos):
        context.progress.say(f"{len(videos) - len(todo)} of {len(videos)} videos are there already")
    yardstick = yardstick_work(len(schedule), len(videos)) if options.measures_yardstick else 0.0
    context.progress.plan(len(todo) + yardstick)
    _record(todo, maker, schedule, metadata, context, last)
    context.parallel.barrier()
    if context.parallel.is_main:
        _join(videos, metadata, options, context)
    context.parallel.barrier()
    if options.measures_yardstick:
        pairs = [(video.request, video.latents) for video in videos]
        found = measure_yardstick(maker, schedule, pairs, context)
        if found is not None and context.parallel.is_main:
            found.save(folder)
            told = found.psnr.text(digits=1, unit=" dB")
            context.progress.say(
                f"yardstick: {found.steps} steps are {told} from {found.converged}"
            )


def _requests(options: CalibrateOptions) -> list[Request]:
    prompts = given_prompts(options)
    if prompts is None:
        count = options.num_prompts or CALIBRATED_PROMPTS
        prompts = default_prompts(options, "calibration")[:count]
    return [Request(prompt, options.seed) for prompt in prompts[: options.num_prompts]]


def _statistics(folder: Path, name: str) -> Path:
    return folder / "statistics" / f"{name}.safetensors"


def _free_name(folder: Path, number: int, request: Request, metadata: dict[str, Any]) -> str:
    """The name of a video's files in a folder that may hold those of other calibrations."""
    name = f"{number:03d}-{request.slug}"
    found = load_whole(_statistics(folder, name))
    if found is None or _is_current(found, request, metadata):
        return name
    about = json.dumps([request.prompt, request.seed, metadata], sort_keys=True)
    return f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:8]}"


def _is_current(found: Calibration, request: Request, metadata: dict[str, Any]) -> bool:
    has_all = found.signals is not None and found.lags == LAGS  # earlier versions kept less
    return has_all and is_of(found, request, metadata)


def _finished(video: _Video, metadata: dict[str, Any]) -> Calibration | None:
    """The statistics of a video of which all files are there, recorded in this very way."""
    if not (video.latents.is_file() and video.video.is_file()):
        return None
    return _is_recorded(video, metadata)


def _is_recorded(video: _Video, metadata: dict[str, Any]) -> Calibration | None:
    found = load_whole(video.statistics)
    return found if found is not None and _is_current(found, video.request, metadata) else None


def _record(
    todo: list[_Video],
    maker: Maker,
    schedule: TimestepSchedule,
    metadata: dict[str, Any],
    context: WorkerContext,
    last: bool,
) -> None:
    """Make and record `todo`, shared out over the ranks, or each made by several."""
    maker, context = maker.with_layout(context, len(todo))
    parallel = context.parallel
    unwritten = parallel.broadcast_object(
        [v for v in todo if v.latents.is_file() and _is_recorded(v, metadata)]
    )
    videos = parallel.share(todo)
    maker.prefetch_prompts((video.request.prompt for video in videos), last=last)
    recorder = CalibrationRecorder(
        len(schedule),
        maker.num_blocks,
        guidance_scale=maker.guidance_scale if maker.guided else None,
        lags=LAGS,
        spread=parallel,
    )
    with context.progress.task("calibrating", len(videos) * len(schedule), len(todo)) as task:
        for video in videos:
            if video in unwritten:
                frames = maker.decode(load_latents(video.latents)[None], video.request.seed)
                if parallel.is_leader:
                    write_frames(video.video, frames, maker.fps)
                task.advance(len(schedule))
                continue
            recorder.reset()
            made = maker.denoise(
                video.request, schedule, callback=lambda *_: task.advance(), recorder=recorder
            )
            latents = made.latents[0].float().cpu().contiguous()
            if not torch.isfinite(latents).all():
                raise CalibrationError(
                    f"the video of {video.request.prompt!r} came out as NaN or infinity; "
                    "try --dtype float32"
                )
            frames = maker.decode(made.latents, video.request.seed)
            if not parallel.is_leader:
                continue
            save_latents(video.latents, latents)
            statistics = Calibration.of_video(
                recorder.result(),
                schedule=schedule,
                lags=LAGS,
                request=video.request,
                metadata=metadata,
                seconds=made.seconds * parallel.layout.replica_size,
            )
            statistics.save(video.statistics)
            write_frames(video.video, frames, maker.fps)
            context.progress.detail(f"{video.video}: denoised in {made.seconds:.2f} s")


def _join(
    videos: list[_Video],
    metadata: dict[str, Any],
    options: CalibrateOptions,
    context: WorkerContext,
) -> None:
    """Merge the statistics, list the videos, note for the searches where the calibration is."""
    parts = []
    for video in videos:
        part = _finished(video, metadata)
        if part is None:
            raise CalibrationError(f"{video.statistics}: gone or damaged; run calibrate again")
        parts.append(part)
    folder = options.out_dir
    place = folder / CALIBRATION_FILE
    Calibration.merge(parts).save(place)
    entries = [
        {
            "file": str(video.video.relative_to(folder)),
            "latents": str(video.latents.relative_to(folder)),
            **video.request.as_json(),
            "recorded_in_seconds": part.seconds,
        }
        for video, part in zip(videos, parts, strict=True)
    ]
    add_take(folder, {"command": "calibrate", **metadata}, entries)
    write_json(options.calibration_note, {"folder": str(folder.resolve())})
