"""A folder of videos as a calibration: encoded, noised along one path each, evaluated.

The reference tool's calibration videos are such a folder (5 to 20 files). Costs one full-length
generation's worth of network evaluations per video, once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from osp_opt.base.artifacts import fingerprint_folder, write_json
from osp_opt.base.errors import CalibrationError, FileError
from osp_opt.base.video import read_video
from osp_opt.calibration.listing import described_videos
from osp_opt.calibration.paths import LATENTS_FILE, NoisePath
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.calibration.statistics import Calibration, is_of, load_whole
from osp_opt.generate.manifest import VideoFile
from osp_opt.generate.references import save_latents
from osp_opt.options import SearchStepsOptions
from osp_opt.pipelines.maker import Request
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.context import WorkerContext

__all__ = ["record_videos"]

LEVELS = 100  # of the table, as calibrate records by default


def record_videos(options: SearchStepsOptions, context: WorkerContext, folder: Path) -> Calibration:
    """The calibration of the videos in `folder`; kept in the run folder.

    Raises CalibrationError naming the file that does not serve.
    """
    described = described_videos(options, folder)
    maker = VideoMaker(options, context)
    videos = {video.path: _frames(video, maker, options.resize) for video, _ in described}
    schedule = TimestepSchedule(TimestepSchedule.uniform(LEVELS).timesteps)
    metadata = {
        "setting": maker.setting(schedule).as_json(),
        "source": "videos",
        "num_blocks": maker.num_blocks,
        # A video replaced by another one of the same name has to be evaluated again.
        "videos": {path.name: fingerprint_folder(path) for path in videos},
    }
    # A seed for each: videos on the same (empty) prompt must not share a noise path.
    work = [
        (video.path, Request(prompt, options.seed + number))
        for number, (video, prompt) in enumerate(described)
    ]
    context.progress.say(
        f"calibrating on {len(work)} videos of {folder}: as much work as sampling each once"
    )

    def is_recorded(path: Path, request: Request) -> bool:
        found = load_whole(_statistics(context.run_dir, path))
        return found is not None and is_of(found, request, metadata)

    todo = context.parallel.broadcast_object(
        [(path, request) for path, request in work if not is_recorded(path, request)]
    )
    maker, context = maker.with_layout(context, len(todo))
    mine = context.parallel.share(todo)
    maker.prefetch_prompts(request.prompt for _, request in mine)
    with context.progress.task("evaluating videos", len(mine)) as task:
        for path, request in mine:
            _record(videos[path], path, request, maker, schedule, metadata, context)
            task.advance()
    context.parallel.barrier()
    parts = [Calibration.load(_statistics(context.run_dir, path)) for path, _ in work]
    calibration = Calibration.merge(parts)
    if context.parallel.is_main:
        entries = [
            {
                "latents": f"latents/{path.stem}.safetensors",
                **request.as_json(),
            }
            for path, request in work
        ]
        write_json(context.run_dir / LATENTS_FILE, {"videos": entries})
    context.parallel.barrier()
    return calibration


def _statistics(run_dir: Path, path: Path) -> Path:
    return run_dir / "statistics" / f"{path.stem}.safetensors"


def _frames(file: VideoFile, maker: VideoMaker, resize: bool) -> np.ndarray:
    """The first frames of a video at the sampled size, uint8 [t h w c]."""
    shape, path = maker.shape, file.path
    try:
        frames = read_video(file.raw or path, max_frames=shape.num_frames)
    except FileError as error:
        raise CalibrationError(f"--videos-path: {error}") from error
    if len(frames) < shape.num_frames:
        raise CalibrationError(
            f"{path}: {len(frames)} frames, {shape.num_frames} are sampled; "
            "give longer videos, or another --num-frames"
        )
    if frames.shape[1:3] == (shape.height, shape.width):
        return frames
    if not resize:
        raise CalibrationError(
            f"{path}: {frames.shape[2]}x{frames.shape[1]} pixels, "
            f"{shape.width}x{shape.height} are sampled; use --resize, or other videos"
        )
    video = rearrange(torch.from_numpy(frames).float(), "t h w c -> t c h w")
    video = F.interpolate(video, (shape.height, shape.width), mode="bilinear", antialias=True)
    resized: np.ndarray = rearrange(video.round().byte(), "t c h w -> t h w c").numpy()
    return resized


def _record(
    frames: np.ndarray,
    path: Path,
    request: Request,
    maker: VideoMaker,
    schedule: TimestepSchedule,
    metadata: dict[str, Any],
    context: WorkerContext,
) -> None:
    """Latents and statistics of one video."""
    latents = maker.encode(frames)
    recorder = CalibrationRecorder(
        len(schedule),
        maker.num_blocks,
        guidance_scale=maker.guidance_scale if maker.guided else None,
        spread=context.parallel,
    )
    video = NoisePath(
        maker, latents.cpu(), request, recorder=recorder, transformer=maker.transformer
    )
    for step, sigma in enumerate(schedule.sigmas[:-1]):
        video(float(sigma), step)
    if not context.parallel.is_leader:
        return
    save_latents(context.run_dir / "latents" / f"{path.stem}.safetensors", latents[0].float())
    statistics = Calibration.of_video(
        recorder.result(),
        schedule=schedule,
        lags=recorder.lags,
        request=request,
        metadata=metadata,
    )
    statistics.save(_statistics(context.run_dir, path))
