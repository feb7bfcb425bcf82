"""What the run folders hold, read and checked; nothing is sampled or measured here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import check_place, fingerprint_folder, meta_path, read_json, read_meta
from osp_opt.base.errors import FileError
from osp_opt.base.ffmpeg import check_ffmpeg
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration import Calibration
from osp_opt.generate.manifest import MANIFEST, Take, read_takes
from osp_opt.options import CALIBRATION_FILE, OPTIONS_FILE, STATE_FOLDER, ReportOptions
from osp_opt.report.documents import Curve, EvaluationFile, PolicyMeta, ScheduleMeta, checked
from osp_opt.sampling.schedule import TimestepSchedule

__all__ = ["Material", "PolicyFile", "ScheduleFile", "folders_to_report", "read_runs"]

_LEDGER = "trials.jsonl"
_EVALUATION = "evaluation.json"
_CURVE = "curve.json"
_SCHEDULES = "*schedule*.txt"
_POLICIES = "*cache_config*.json"
_RECIPES = "recipe*.json"
_SIDECAR = ".meta.json"


@dataclass(frozen=True)
class ScheduleFile:
    """A schedule that was searched, with its provenance."""

    path: Path
    schedule: TimestepSchedule
    meta: dict[str, Any]


@dataclass(frozen=True)
class PolicyFile:
    """A cache policy that was searched, with its provenance."""

    path: Path
    policy: CachePolicy
    meta: dict[str, Any]


@dataclass
class Material:
    """Everything found, in the order of the folders given."""

    places: list[Path] = field(default_factory=list)
    """The folders that were named."""
    folders: list[Path] = field(default_factory=list)
    calibrations: list[Calibration] = field(default_factory=list)
    videos: list[Take] = field(default_factory=list)
    schedules: list[ScheduleFile] = field(default_factory=list)
    policies: list[PolicyFile] = field(default_factory=list)
    recipes: list[dict[str, Any]] = field(default_factory=list)
    """The provenance of each."""
    curves: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    documents: dict[str, Any] = field(default_factory=dict)
    """Name of every JSON that says where something came from, to its content."""
    digests: dict[str, str] = field(default_factory=dict)
    """Name of every file used, to its SHA-256."""


def folders_to_report(options: ReportOptions) -> list[Path]:
    """The named folders that are run folders, and those inside working folders, each once.

    Raises InputError where no report can be made, or a folder has no run of osp-opt.
    """
    check_place(options.report_path, "--out" if options.out else "the report")
    check_ffmpeg()
    found: dict[Path, Path] = {}
    for place in options.places:
        if not place.is_dir():
            raise FileError(f"{place}: no such folder; give run folders or a working folder")
        folders = [place] if _holds_run(place) else sorted(filter(_holds_run, place.iterdir()))
        if not folders:
            raise FileError(f"{place}: no run of osp-opt in it; run `osp-opt calibrate` first")
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def read_runs(places: Sequence[Path], folders: Sequence[Path]) -> Material:
    """Read the run folders that were found at the named places; raises what reading them raises."""
    found = Material(places=list(places))
    for folder in folders:
        _read(folder, found)
    return found


def _holds_run(folder: Path) -> bool:
    if not folder.is_dir() or ".old-" in folder.name:
        return False
    names = (MANIFEST, CALIBRATION_FILE, _LEDGER, _EVALUATION)
    return any((folder / name).is_file() for name in names) or any(_results(folder))


def _results(folder: Path) -> Iterator[Path]:
    for pattern in (_SCHEDULES, _POLICIES, _RECIPES):
        yield from sorted(p for p in folder.glob(pattern) if not p.name.endswith(_SIDECAR))


def _read(folder: Path, found: Material) -> None:
    found.folders.append(folder)

    def note(path: Path, content: Any = None) -> None:
        name = f"{folder.name}/{path.relative_to(folder).as_posix()}"
        found.digests[name] = fingerprint_folder(path)
        if content is not None:
            found.documents[name] = content

    for path in (folder / OPTIONS_FILE, *sorted(folder.glob(f"{STATE_FOLDER}/*/{OPTIONS_FILE}"))):
        if path.is_file():
            note(path, read_json(path, "run file"))
    if (folder / CALIBRATION_FILE).is_file():
        found.calibrations.append(Calibration.load(folder / CALIBRATION_FILE))
        note(folder / CALIBRATION_FILE)
    if (folder / MANIFEST).is_file():
        takes = read_takes(folder)
        found.videos.extend(takes)
        note(folder / MANIFEST, {take.label or "videos": take.settings for take in takes})
    for path in _results(folder):
        meta = read_meta(path) or {}
        kind = ScheduleMeta if path.suffix == ".txt" else PolicyMeta
        checked(kind, meta, meta_path(path))
        if path.suffix == ".txt":
            found.schedules.append(ScheduleFile(path, TimestepSchedule.from_file(path), meta))
        elif path.match(_RECIPES):
            found.recipes.append(meta)
        else:
            found.policies.append(PolicyFile(path, CachePolicy.from_file(path), meta))
        note(path, meta or None)
    if (folder / _LEDGER).is_file():
        note(folder / _LEDGER)
    if (folder / _CURVE).is_file():
        curve = read_json(folder / _CURVE, "curve")
        found.curves.append(checked(Curve, curve, folder / _CURVE))
        note(folder / _CURVE)
    if (folder / _EVALUATION).is_file():
        content = read_json(folder / _EVALUATION, "evaluation", max_bytes=2**28)
        content = checked(EvaluationFile, content, folder / _EVALUATION)
        found.evaluations.append(content)
        note(folder / _EVALUATION, {k: v for k, v in content.items() if k != "videos"})
