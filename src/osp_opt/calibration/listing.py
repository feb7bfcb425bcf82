"""Which videos of a folder a search can be calibrated on, and what they show (no torch)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from osp_opt.base.errors import CalibrationError
from osp_opt.generate.manifest import VideoFile, original_of, read_takes
from osp_opt.generate.prompts import listed_prompts
from osp_opt.options import SearchStepsOptions

__all__ = ["MAX_VIDEOS", "MIN_VIDEOS", "described_videos"]

MIN_VIDEOS, MAX_VIDEOS = 5, 20  # the reference tool's bounds
NAMED = 20  # characters of a prompt that a file name has to begin with to be named after it


def described_videos(options: SearchStepsOptions, folder: Path) -> list[tuple[VideoFile, str]]:
    """The videos in `folder`, each with its prompt ("" where nobody says), at most MAX_VIDEOS.

    A manifest tells both; of several takes the original serves. Without a manifest the prompts
    given with the command describe the files: those that are named after a prompt, that one; else
    in the order of their numbers. Raises CalibrationError when they are too few, or do not fit.
    """
    takes = read_takes(folder)
    videos = original_of(takes).videos if takes else ()
    if any(video.prompt is not None for video in videos):
        told = [(video, video.prompt or "") for video in videos]
    else:
        files = [video for video in videos if video.path.suffix.lower() == ".mp4"]
        told = _told(files, listed_prompts(options), folder)
    if len(told) < MIN_VIDEOS:
        raise CalibrationError(
            f"--videos-path {folder}: {len(told)} videos; give {MIN_VIDEOS} to {MAX_VIDEOS}, "
            "or a folder made by osp-opt calibrate"
        )
    return told[:MAX_VIDEOS]


def _told(
    videos: Sequence[VideoFile], prompts: Sequence[str] | None, folder: Path
) -> list[tuple[VideoFile, str]]:
    if prompts is None:
        return [(video, "") for video in videos]
    stems = [_plain(video.path.stem) for video in videos]
    named: dict[int, str] = {}
    for prompt in prompts:
        beginning = _plain(prompt)[:NAMED]
        matches = [i for i, stem in enumerate(stems) if beginning and stem.startswith(beginning)]
        if len(matches) == 1:
            named[matches[0]] = prompt
    if len(named) == len(videos):
        return [(video, named[i]) for i, video in enumerate(videos)]
    if len(videos) != len(prompts):
        raise CalibrationError(
            f"--videos-path {folder}: {len(videos)} videos but {len(prompts)} prompts; "
            "give one per video in the order of their numbers, or none"
        )
    return list(zip(videos, prompts, strict=True))


def _plain(text: str) -> str:
    """Letters and digits alone, as they survive in file names."""
    return re.sub(r"[\W_]+", "", text.lower())
