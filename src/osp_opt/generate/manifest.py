"""The videos of a folder: which files they are, and how each was made.

A *take* is a set of videos made in one way: one model, shape, schedule, cache, guidance. Takes of
many commands live in one folder; `manifest.json` lists them all. Folders of other tools have no
manifest and hold one take, of which nothing is known but the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import (
    file_inside,
    file_lock,
    read_json,
    read_meta,
    setting_of,
    write_json,
)
from osp_opt.base.errors import FileError, ScheduleError
from osp_opt.generate.listing import video_files
from osp_opt.options import STATE_FOLDER
from osp_opt.sampling.schedule import TimestepSchedule

__all__ = [
    "MANIFEST",
    "Take",
    "VideoFile",
    "add_take",
    "free_path",
    "open_take",
    "original_of",
    "read_takes",
    "take_label",
]

MANIFEST = "manifest.json"
_MANIFEST_MAX_BYTES = 2**26  # some hundred thousand videos


@dataclass(frozen=True)
class VideoFile:
    """One video or image; prompt, seed, seconds of denoising (`recorded_seconds`: while statistics
    were recorded, which takes longer) and the conditions they were measured under, files of its raw
    frames and of its latents where a manifest says them.
    """

    path: Path
    prompt: str | None = None
    seed: int | None = None
    seconds: float | None = None
    raw: Path | None = None
    latents: Path | None = None
    recorded_seconds: float | None = None
    timed_on: dict[str, Any] | None = field(default=None, hash=False)

    @property
    def label(self) -> str:
        """How a message names it."""
        if self.prompt is None:
            return self.path.name
        prompt = self.prompt if len(self.prompt) <= 60 else self.prompt[:57] + "..."
        return f"{prompt!r} seed {self.seed}"


@dataclass(frozen=True)
class Take:
    """Videos of a folder that were made in one way, in order.

    `settings` is what decided them besides prompt and seed (the keys that `sample` and `calibrate`
    keep); None where there is no manifest. `label` tells the takes of one folder apart.
    """

    folder: Path
    videos: tuple[VideoFile, ...]
    settings: dict[str, Any] | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """How a table or a message names it: the folder, and the label where there are others."""
        return f"{self.folder.name}/{self.label}" if self.label else self.folder.name

    @property
    def address(self) -> Path:
        """What :func:`open_take` takes for it."""
        return self.folder / self.label if self.label else self.folder

    @property
    def timesteps(self) -> list[float]:
        """Those that were sampled; empty where they are not known."""
        return _timesteps(self.settings or {})

    @property
    def is_uniform(self) -> bool:
        """Whether the timesteps are evenly spaced, as far as is known."""
        return _is_uniform(self.settings or {})

    @property
    def steps_word(self) -> str:
        """What its steps are called: "uniform", of a pipeline "own", or "searched"."""
        own = "own_steps" in setting_of(self.settings)
        return ("own" if own else "uniform") if self.is_uniform else "searched"

    def is_same(self, other: Take) -> bool:
        """Whether both are one take of one folder."""
        return (self.folder.resolve(), self.label) == (other.folder.resolve(), other.label)

    @property
    def fps(self) -> float | None:
        """Frames per second as the manifest says."""
        value = (self.settings or {}).get("fps")
        return float(value) if isinstance(value, (int, float)) and value > 0 else None


def read_takes(folder: Path) -> list[Take]:
    """The takes of a folder, the oldest first; empty when it holds no videos.

    Overviews, raw copies and hidden files are no videos. Raises FileError for a damaged manifest.
    """
    if (folder / MANIFEST).is_file():
        takes = _listed(folder, _content(folder))
        return _labelled(takes) if len(takes) > 1 else takes
    for place in (folder, folder / "videos"):
        if files := video_files(place):
            return [Take(folder, tuple(map(VideoFile, files)))]
    return []


def open_take(place: Path, flag: str, other_than: Take | None = None) -> Take:
    """The take at `place`: a folder, or FOLDER/LABEL for one of several.

    Of a folder with several the original is meant; with `other_than`, the one besides it. Raises
    FileError naming `flag`, what is wrong, and which takes there are.
    """
    if not place.is_dir():
        takes = read_takes(place.parent) if place.parent.is_dir() else []
        for take in takes:
            if take.label == place.name:
                return take
        raise FileError(f"{flag} {place}: no such folder; give a folder of videos{_names(takes)}")
    takes = read_takes(place)
    if not takes:
        raise FileError(f"{flag} {place}: no videos in it; give the folder that holds them")
    if other_than is None:
        return original_of(takes)
    others = [take for take in takes if not take.is_same(other_than)]
    if len(others) == 1:
        return others[0]
    if not others:
        raise FileError(f"{flag} {place}: holds the reference alone; make the videos to compare")
    raise FileError(f"{flag} {place}: holds videos made in {len(others)} ways{_names(others)}")


def original_of(takes: Sequence[Take]) -> Take:
    """The take that others are compared with: no cache, uniform steps, the most of them.

    `sample`'s comes before `calibrate`'s: its videos have times and are meant to be looked at.
    """

    def rank(take: Take) -> tuple[bool, bool, int, bool]:
        settings = take.settings or {}
        steps = len(take.timesteps)
        plain = take.is_uniform and not _is_corrected(settings)
        return settings.get("cache") is None, plain, steps, "cache" in settings

    return max(takes, key=rank)


def take_label(settings: Mapping[str, Any]) -> str:
    """A take in a few words, as part of a file name: ``50steps-searched-cached``."""
    timesteps = _timesteps(settings)
    words = [f"{len(timesteps)}steps"]
    if settings.get("command") == "calibrate":
        words.append("calibration")
    if not _is_uniform(settings):
        words.append("searched")
    if _is_corrected(settings):
        words.append("corrected")
    if settings.get("cache") is not None:
        words.append("cached")
    return "-".join(words)


def free_path(folder: Path, stem: str, suffix: str, about: Mapping[str, Any]) -> Path:
    """Where a file made of `about` (its sidecar's content) belongs in a folder that others share.

    ``stem`` itself for uniform steps without a cache; else, or when a file made of something else
    has that name, with the take's label behind it; if that is taken, too, with a digest. The answer
    is the same when the file is there already.
    """
    label = take_label(about)
    plain = about.get("cache") is None and _is_uniform(about) and not _is_corrected(about)
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:8]
    names = [stem] if plain else []
    for name in (*names, f"{stem}-{label}", f"{stem}-{label}-{digest}"):
        path = folder / f"{name}{suffix}"
        known = read_meta(path)
        if known is None or all(known.get(key) == value for key, value in about.items()):
            return path
    return path


def add_take(
    folder: Path, settings: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
) -> None:
    """Put videos into the folder's manifest, beside those of other takes.

    Args:
        folder: of the videos.
        settings: what decided them besides prompt and seed.
        entries: one per video, in order: "file" (relative to the folder), "prompt", "seed", and
            "denoising_seconds", "timed_on", "frames", "latents" where there are such.
    """
    names = {entry["file"] for entry in entries}
    with file_lock(folder / STATE_FOLDER / "manifest.lock"):
        takes: list[dict[str, Any]] = []
        with suppress(FileError):  # a damaged list is made anew
            takes = _raw_takes(_content(folder))
        mine: dict[str, Any] = {**settings, "videos": [*entries]}
        kept = []
        for take in takes:
            others = [
                entry
                for entry in take["videos"]
                if isinstance(entry, dict)
                and entry.get("file") not in names
                and file_inside(folder, entry.get("file")) is not None
            ]
            if {k: v for k, v in take.items() if k != "videos"} == dict(settings):
                mine["videos"] = [*others, *entries]
                kept.append(mine)
            elif others:
                kept.append({**take, "videos": others})
        if not any(take is mine for take in kept):
            kept.append(mine)
        write_json(folder / MANIFEST, {"takes": kept})


def _content(folder: Path) -> Any:
    return read_json(folder / MANIFEST, "manifest", max_bytes=_MANIFEST_MAX_BYTES)


def _raw_takes(manifest: Any) -> list[dict[str, Any]]:
    """The takes of a manifest's JSON; one of an earlier version holds one."""
    takes = manifest.get("takes", [manifest]) if isinstance(manifest, dict) else None
    if not isinstance(takes, list) or not all(
        isinstance(take, dict) and isinstance(take.get("videos"), list) for take in takes
    ):
        raise FileError("names no videos; was it written by osp-opt?")
    return takes


def _listed(folder: Path, manifest: Any) -> list[Take]:
    """The takes of a manifest, whose files have to lie inside its folder."""
    place = folder / MANIFEST
    try:
        takes = _raw_takes(manifest)
    except FileError as error:
        raise FileError(f"manifest {place}: {error}") from error
    return [
        Take(
            folder,
            tuple(_entry(folder, place, number, entry) for number, entry in enumerate(videos)),
            {name: value for name, value in take.items() if name != "videos"},
        )
        for take in takes
        if (videos := take["videos"])
    ]


def _entry(folder: Path, place: Path, number: int, entry: Any) -> VideoFile:
    file, prompt, seed = (
        (entry.get(name) for name in ("file", "prompt", "seed"))
        if isinstance(entry, dict)
        else (None, None, None)
    )
    if not (isinstance(file, str) and isinstance(prompt, str) and isinstance(seed, int)):
        raise FileError(f"manifest {place}: entry {number} lacks file, prompt or seed")
    path = file_inside(folder, file)
    if path is None:
        raise FileError(
            f"manifest {place}: entry {number} is {file!r:.80}: missing or outside the folder; "
            "sample it again"
        )
    return VideoFile(
        path,
        prompt,
        seed,
        _seconds(entry.get("denoising_seconds")),
        file_inside(folder, entry.get("frames")),
        file_inside(folder, entry.get("latents")),
        _seconds(entry.get("recorded_in_seconds")),
        timed_on if isinstance(timed_on := entry.get("timed_on"), dict) else None,
    )


def _seconds(value: Any) -> float | None:
    """A time that was measured."""
    return float(value) if isinstance(value, (int, float)) and value > 0 else None


def _labelled(takes: Sequence[Take]) -> list[Take]:
    """The takes with labels of their own."""
    labels = [take_label(take.settings or {}) for take in takes]
    numbers: dict[str, int] = {}
    result = []
    for take, label in zip(takes, labels, strict=True):
        number = numbers[label] = numbers.get(label, 0) + 1
        own = label if number == 1 else f"{label}-{number}"
        result.append(replace(take, label=own))
    return result


def _timesteps(settings: Mapping[str, Any]) -> list[float]:
    timesteps = setting_of(settings).get("timesteps")
    if not isinstance(timesteps, list):
        return []
    return [float(t) for t in timesteps if isinstance(t, (int, float))]


def _is_corrected(settings: Mapping[str, Any]) -> bool:
    return bool(setting_of(settings).get("corrections"))


def _is_uniform(settings: Mapping[str, Any]) -> bool:
    """Whether the steps are what anybody would take: evenly spaced, or a pipeline's own."""
    setting = setting_of(settings)
    if "own_steps" in setting:
        return bool(setting["own_steps"])
    timesteps = _timesteps(settings)
    try:
        return not timesteps or TimestepSchedule(tuple(timesteps)).is_uniform
    except ScheduleError:
        return False


def _names(takes: Sequence[Take]) -> str:
    names = ", ".join(str(take.address) for take in takes[:8])
    return f"; give one of {names}" if takes else ""
