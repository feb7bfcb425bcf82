"""Which video is compared with which.

Takes of which a manifest says prompts and seeds are paired by those, others by file name. A
video without a partner is an error: leaving it out would bias the result.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

from osp_opt.base.errors import InputError, ShapeError
from osp_opt.base.video import Frames, read_frames
from osp_opt.generate.manifest import Take, VideoFile

__all__ = ["Pair", "pair_videos", "pairing"]

LOSSY_SUFFIXES = (".mp4", ".webm", ".mov", ".avi", ".gif", ".jpg", ".jpeg")


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


Key = Callable[[VideoFile], Hashable]


def pairing(reference: Take, candidate: Take) -> Key:
    """What two partners have in common."""
    known = reference.settings is not None and candidate.settings is not None
    return _request if known else _name


def pair_videos(reference: Take, candidate: Take) -> list[Pair]:
    """Partners in the reference's order. Raises InputError for videos without one, and twins."""
    key = pairing(reference, candidate)
    ours, theirs = (_by_key(videos, key) for videos in (reference, candidate))
    for one, other, videos in ((ours, theirs, candidate), (theirs, ours, reference)):
        lonely = [video for name, video in one.items() if name not in other]
        if lonely:
            how = "same prompts and seeds" if key is _request else "same file names"
            raise InputError(
                f"{videos.address}: nothing to pair {lonely[0].label} with "
                f"({len(lonely)} of {len(one)} videos lack a partner); "
                f"compare folders with the {how}"
            )
    return [Pair(video, theirs[name]) for name, video in ours.items()]


def _by_key(videos: Take, key: Key) -> dict[Hashable, VideoFile]:
    found: dict[Hashable, VideoFile] = {}
    for video in videos.videos:
        name = key(video)
        if name in found:
            raise InputError(
                f"{videos.address}: {video.label} is there twice; leave one of them out"
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
