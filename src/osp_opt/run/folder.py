"""The run folder: which options it belongs to, and that only one run uses it (no torch)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from osp_opt import __version__
from osp_opt.base.artifacts import fingerprint_folder, read_json, write_json
from osp_opt.base.errors import FileError, OptionError
from osp_opt.options import (
    CALIBRATION_FILE,
    COMMANDS,
    OPTIONS_FILE,
    JobOptions,
    SearchOptions,
    SearchStepsOptions,
    calibration_file,
)

LOCK_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_LOCK_FLAGS = os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{8}\.part(\..*)?$")


@dataclass(frozen=True)
class Run:
    """What ``options.json`` says: the folder, the command and its options."""

    folder: Path
    options: JobOptions


@contextmanager
def open_run(options: JobOptions) -> Iterator[Run]:
    """Take the run folder for these options, for as long as the context lasts.

    A folder of the same options is resumed; one of other options is refused, or with
    ``--overwrite`` moved aside. Several machines of one job share a folder: each looks at it in its
    turn. Raises OptionError or FileError.
    """
    folder, shared = options.run_dir, options.nnodes > 1
    with ExitStack() as locks:
        locks.enter_context(_locked(folder, wait=shared))
        record = _record(options)
        difference = _difference(folder, record)
        if difference is None:
            if not shared:
                remove_leftovers(folder)
        elif not options.overwrite:
            other = "--workdir" if folder.parent == options.workdir else "--out"
            raise OptionError(
                f"{folder}: {difference}; resume with the same options, "
                f"start afresh with --overwrite, or choose another {other}"
            )
        else:
            _move_aside(folder)
            locks.enter_context(_locked(folder, wait=shared))  # the other one went with the folder
        write_json(folder / OPTIONS_FILE, record)
        if shared:
            locks.close()
        yield Run(folder, options)


def load_run(path: str | Path) -> Run:
    """Read an ``options.json``. Raises FileError when it is not one of ours."""
    record = read_json(path, "run file")
    command = record.get("command") if isinstance(record, dict) else None
    model = COMMANDS.get(str(command))
    if model is None or not isinstance(record.get("options"), dict):
        raise FileError(f"run file {path}: names no command of osp-opt")
    try:
        options: Any = model.model_validate(record["options"])
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise FileError(
            f"run file {path}: {'.'.join(map(str, problem['loc']))}: {problem['msg']}; "
            "was it written by this version?"
        ) from error
    return Run(Path(path).parent, options)


@contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the folder's lock. The kernel drops it when the process ends, however it ends.

    Where the file system has no locks (some network ones) there is none.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, _LOCK_FLAGS, 0o640)
    except OSError as error:
        raise FileError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise FileError(
                f"{folder}: another osp-opt is at work there; wait for it, or choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise FileError(f"{folder}: cannot be locked ({error.strerror})") from error
        yield
    finally:
        os.close(descriptor)


def _record(options: JobOptions) -> dict[str, Any]:
    return {
        "command": options.command,
        "version": __version__,
        "options": options.model_dump(mode="json", exclude_unset=True),
        "identity": options.identity(),
        "inputs": _input_digests(options),
    }


def _input_digests(options: JobOptions) -> dict[str, str]:
    """Digests of the files that the result depends on: a name alone does not say what is in it."""
    files = {
        name: path
        for name in ("prompt_file", "schedule", "cache")
        if (path := getattr(options, name, None)) is not None
    }
    if isinstance(options, SearchStepsOptions) and options.videos_path is not None:
        names = sorted(path.name for path in options.videos_path.iterdir())
        files["videos"] = options.videos_path / CALIBRATION_FILE
        if not files["videos"].is_file():
            del files["videos"]
            return {**_digests(files), "videos": "\n".join(names)}
    elif isinstance(options, SearchOptions):
        files["calibration"] = calibration_file(options.calibration_dir)
    return _digests(files)


def _digests(files: dict[str, Path]) -> dict[str, str]:
    return {name: fingerprint_folder(path) for name, path in files.items()}


def _difference(folder: Path, record: dict[str, Any]) -> str | None:
    """How the run that lies in ``folder`` differs from ``record``; None when it does not."""
    path = folder / OPTIONS_FILE
    if not path.exists():
        return None
    try:
        earlier = read_json(path, "run file")
    except FileError as error:
        return f"its {OPTIONS_FILE} cannot be read ({error})"
    if not isinstance(earlier, dict) or earlier.get("command") != record["command"]:
        return "belongs to another command"
    for part in ("identity", "inputs"):
        old, new = earlier.get(part), record[part]
        if not isinstance(old, dict):
            return f"its {OPTIONS_FILE} is damaged"
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                if part == "inputs":
                    return f"was made from other {name} contents"
                return f"was made with {name} {_shown(old.get(name))}, not {_shown(new.get(name))}"
    return None


def _shown(value: Any) -> str:
    text = "unset" if value is None or value == [] else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _move_aside(folder: Path) -> None:
    number = 1
    while (target := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    try:
        folder.rename(target)
    except OSError as error:
        raise FileError(f"{folder}: cannot be moved aside ({error.strerror})") from error


def remove_leftovers(folder: Path) -> None:
    """Remove the half-written files of a run that was killed (:func:`atomic_path` names them).

    Only while nobody else writes there.
    """
    for path in folder.rglob(".*.part*"):
        if _TEMPORARY.match(path.name):
            path.unlink(missing_ok=True)
