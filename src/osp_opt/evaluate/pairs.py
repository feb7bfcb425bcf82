"""Which video is compared with which.

Two folders that both have a manifest (of `sample` or `calibrate`) are paired by prompt and seed,
others by file name. A video without a partner is an error: leaving it out would bias the result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from osp_opt.base.artifacts import file_inside, read_json
from osp_opt.base.errors import FileError, InputError, ShapeError
from osp_opt.base.video import Frames, read_image, read_video

__all__ = ["Pair", "VideoFile", "VideoSet", "pair_videos", "read_frames"]

MANIFEST = "manifest.json"
VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")
LOSSY_SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".gif", ".jpg", ".jpeg")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
_OVERVIEW = "grid"  # what sample adds to its folder
_RAW_FRAMES = ".frames.mkv"  # beside videos, found through the manifest


@dataclass(frozen=True)
class VideoFile:
    """One video or image; prompt, seed, seconds of denoising and a file of its raw frames where a
    manifest says them.
    """

    path: Path
    prompt: str | None = None
    seed: int | None = None
    seconds: float | None = None
    raw: Path | None = None

    @property
    def label(self) -> str:
        """How a message names it."""
        if self.prompt is None:
            return self.path.name
        prompt = self.prompt if len(self.prompt) <= 60 else self.prompt[:57] + "..."
        return f"{prompt!r} seed {self.seed}"


@dataclass(frozen=True)
class VideoSet:
    """The videos of a folder, in order; `manifest` is None for a folder without one."""

    folder: Path
    videos: tuple[VideoFile, ...]
    manifest: dict[str, Any] | None = None

    @classmethod
    def open(cls, folder: Path, flag: str) -> VideoSet:
        """List a folder's videos. Raises FileError naming `flag` and what is wrong."""
        if not folder.is_dir():
            raise FileError(f"{flag} {folder}: no such folder; give a folder of videos")
        manifest = None
        if (folder / MANIFEST).is_file():
            manifest = read_json(folder / MANIFEST, "manifest")
            videos = _listed(folder, manifest)
        else:
            places = [folder, folder / "videos"]
            videos = next((found for place in places if (found := _found(place))), ())
        if not videos:
            raise FileError(f"{flag} {folder}: no videos in it; give the folder that holds them")
        return cls(folder, videos, manifest)

    @property
    def fps(self) -> float | None:
        """Frames per second as the manifest says."""
        value = (self.manifest or {}).get("fps")
        return float(value) if isinstance(value, (int, float)) and value > 0 else None


@dataclass(frozen=True)
class Pair:
    """A video and what it is compared with."""

    reference: VideoFile
    candidate: VideoFile

    @property
    def prompt(self) -> str | None:
        """What both were asked to show, where that is known."""
        return self.reference.prompt or self.candidate.prompt

    @property
    def paths(self) -> tuple[Path, Path]:
        """The files that are compared: raw frames where both have them."""
        first, second = self.reference, self.candidate
        if first.raw is not None and second.raw is not None:
            return first.raw, second.raw
        return first.path, second.path

    @property
    def through_codec(self) -> bool:
        """Whether a lossy codec stands between what was sampled and what is compared."""
        return any(path.suffix.lower() in LOSSY_SUFFIXES for path in self.paths)

    def frames(self) -> tuple[Frames, Frames]:
        """Both videos, uint8 [t h w c]. Raises FileError, and ShapeError when sizes differ."""
        reference, candidate = (read_frames(path) for path in self.paths)
        if reference.shape != candidate.shape:
            raise ShapeError(
                f"{self.candidate.path}: {_size(candidate)}, but {self.reference.path}: "
                f"{_size(reference)}; sample both at one size and length"
            )
        return reference, candidate


def pair_videos(reference: VideoSet, candidate: VideoSet) -> list[Pair]:
    """Partners in the reference's order. Raises InputError for videos without one, and twins."""
    known = reference.manifest is not None and candidate.manifest is not None
    key: Callable[[VideoFile], Hashable] = _request if known else _name
    ours, theirs = (_by_key(videos, key) for videos in (reference, candidate))
    for one, other, videos in ((ours, theirs, candidate), (theirs, ours, reference)):
        lonely = [video for name, video in one.items() if name not in other]
        if lonely:
            how = "same prompts and seeds" if known else "same file names"
            raise InputError(
                f"{videos.folder}: nothing to pair {lonely[0].label} with "
                f"({len(lonely)} of {len(one)} videos lack a partner); "
                f"compare folders with the {how}"
            )
    return [Pair(video, theirs[name]) for name, video in ours.items()]


def read_frames(path: Path) -> Frames:
    """A video, or an image as a video of one frame, uint8 [t h w c]. Raises FileError."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return read_image(path)[np.newaxis]
    return read_video(path)


def _listed(folder: Path, manifest: Any) -> tuple[VideoFile, ...]:
    """The videos of a manifest, which has to stay inside its folder."""
    place = folder / MANIFEST
    entries = manifest.get("videos") if isinstance(manifest, dict) else None
    if not isinstance(entries, list):
        raise FileError(f"manifest {place}: names no videos; was it written by osp-opt?")
    videos = []
    for number, entry in enumerate(entries):
        file, prompt, seed = (
            (entry.get(name) for name in ("file", "prompt", "seed"))
            if isinstance(entry, dict)
            else (None, None, None)
        )
        whole = isinstance(file, str) and isinstance(prompt, str) and isinstance(seed, int)
        if not whole:
            raise FileError(f"manifest {place}: entry {number} lacks file, prompt or seed")
        path = file_inside(folder, file)
        if path is None:
            raise FileError(
                f"manifest {place}: entry {number} is {file!r:.80}: missing or outside the folder; "
                "sample it again"
            )
        seconds = entry.get("denoising_seconds")
        timed = isinstance(seconds, (int, float)) and seconds > 0
        raw = entry.get("frames")
        videos.append(
            VideoFile(
                path,
                prompt,
                seed,
                float(seconds) if timed else None,
                file_inside(folder, raw) if isinstance(raw, str) else None,
            )
        )
    return tuple(videos)


def _found(folder: Path) -> tuple[VideoFile, ...]:
    if not folder.is_dir():
        return ()
    suffixes = VIDEO_SUFFIXES + IMAGE_SUFFIXES
    return tuple(
        VideoFile(path)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in suffixes
        and path.is_file()
        and path.stem != _OVERVIEW
        and not path.name.endswith(_RAW_FRAMES)
        and not path.name.startswith(".")
    )


def _by_key(videos: VideoSet, key: Callable[[VideoFile], Hashable]) -> dict[Hashable, VideoFile]:
    found: dict[Hashable, VideoFile] = {}
    for video in videos.videos:
        name = key(video)
        if name in found:
            raise InputError(
                f"{videos.folder}: {video.label} is there twice; leave one of them out"
            )
        found[name] = video
    return found


def _request(video: VideoFile) -> Hashable:
    return video.prompt, video.seed


def _name(video: VideoFile) -> Hashable:
    return video.path.stem


def _size(frames: Frames) -> str:
    t, h, w, _ = frames.shape
    return f"{t} frames of {w}x{h}"
