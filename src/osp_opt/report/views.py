"""Videos for the page: each run's as it is, and what differs, as data URIs."""

from __future__ import annotations

import base64
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from osp_opt.base.artifacts import read_bytes
from osp_opt.base.video import IMAGE_SUFFIXES, Frames, read_frames, write_frames
from osp_opt.generate.manifest import VideoFile
from osp_opt.report.comparison import Comparison, describe

__all__ = ["DIFFERENCE_GAIN", "Scene", "View", "scenes_of"]

DIFFERENCE_GAIN = 4
"""Differences of single levels cannot be seen; so many times brighter they can."""

DEFAULT_FPS = 24.0  # of folders that do not say
_MAX_BYTES = 2**28  # of one embedded file
_TYPES = {".mp4": "video/mp4", ".webm": "video/webm", ".png": "image/png", ".jpg": "image/jpeg"}


@dataclass(frozen=True)
class View:
    """One moving or still picture."""

    caption: str
    detail: str
    uri: str
    is_image: bool


@dataclass(frozen=True)
class Scene:
    """One prompt and seed: the baseline, and every candidate with its difference."""

    title: str
    frames: int
    fps: float
    views: tuple[View, ...]


def scenes_of(comparison: Comparison, limit: int) -> list[Scene]:
    """The first `limit` videos of the baseline that at least one candidate has too.

    Raises FileError for what cannot be read, ShapeError when sizes differ.
    """
    baseline = comparison.baseline
    partners: dict[Path, list[tuple[str, str, VideoFile]]] = {}
    for videos, pairs in comparison.candidates:
        for pair in pairs:
            entry = (videos.name, describe(videos), pair.candidate)
            partners.setdefault(pair.reference.path, []).append(entry)
    chosen = [video for video in baseline.videos if video.path in partners or not partners]
    return [
        _scene(video, comparison, partners.get(video.path, []), baseline.fps or DEFAULT_FPS)
        for video in chosen[:limit]
    ]


def _scene(
    reference: VideoFile,
    comparison: Comparison,
    candidates: list[tuple[str, str, VideoFile]],
    fps: float,
) -> Scene:
    baseline = comparison.baseline
    frames = read_frames(reference.path)
    how = describe(baseline)
    named = "baseline" in baseline.name
    views = [_view(baseline.name, how if named else f"the baseline, {how}", reference.path)]
    for name, description, video in candidates:
        views.append(_view(name, description, video.path))
        other = read_frames(video.path)
        if other.shape == frames.shape:
            caption = f"difference, {DIFFERENCE_GAIN}x"
            views.append(_difference(caption, f"{name} and baseline", frames, other, fps))
    title = reference.path.stem if reference.prompt is None else reference.prompt
    if reference.seed is not None:
        title += f" (seed {reference.seed})"
    return Scene(title, len(frames), fps, tuple(views))


def _view(caption: str, detail: str, path: Path) -> View:
    suffix = path.suffix.lower()
    data = read_bytes(path, "video", _MAX_BYTES)
    kind = _TYPES.get(suffix, "video/mp4")
    return View(caption, detail, _uri(kind, data), suffix in IMAGE_SUFFIXES)


def _difference(caption: str, detail: str, one: Frames, other: Frames, fps: float) -> View:
    apart = np.abs(one.astype(np.int16) - other.astype(np.int16)) * DIFFERENCE_GAIN
    frames = apart.clip(0, 255).astype(np.uint8)
    still = len(frames) == 1
    with tempfile.TemporaryDirectory(prefix="osp-opt-report-") as folder:
        place = Path(folder) / ("difference.png" if still else "difference.mp4")
        write_frames(place, frames, fps)
        data = place.read_bytes()
    return View(caption, detail, _uri("image/png" if still else "video/mp4", data), still)


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
