"""The run folder: which options it belongs to, and that only one run uses it (no torch)."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import Timeout
from pydantic import ValidationError

from osp_opt import __version__
from osp_opt.base.artifacts import file_lock, fingerprint_folder, read_json, write_json
from osp_opt.base.errors import FileError, OptionError
from osp_opt.options import (
    CALIBRATION_FILE,
    COMMANDS,
    OPTIONS_FILE,
    STATE_FOLDER,
    JobOptions,
    SearchOptions,
    SearchStepsOptions,
    calibration_file,
)

LOCK_FILE = ".lock"
TURN_FILE = ".turn.lock"
LOG_FOLDER = "logs"
_TURN_S = 600  # another machine looks at the folder for a moment only
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_TEMPORARY = re.compile(r"^\..+\.[0-9a-f]{8}\.part(\..*)?$")


@dataclass
class Run:
    """A command at work in its folder, as ``options.json`` says.

    `before` is what the folder said before this run, None when it was new.
    """

    folder: Path
    options: JobOptions
    before: dict[str, Any] | None = None
    made: Path | None = None

    def finish(self) -> None:
        """Note that the run came to its end: others with other options may use the folder now."""
        record = read_json(self.folder / OPTIONS_FILE, "run file")
        record.pop("measured", None)  # of runs on their way
        write_json(self.folder / OPTIONS_FILE, {**record, "finished": True})

    def forget(self) -> None:
        """Leave the folder as it was: for a run that was refused before it did anything."""
        if self.before is not None:
            write_json(self.folder / OPTIONS_FILE, self.before)
            return
        (self.folder / OPTIONS_FILE).unlink(missing_ok=True)
        if self.made is None:
            return
        # Only what is certainly ours and empty: rmdir refuses all else.
        for path in (self.folder / LOG_FOLDER).glob("*.log"):
            path.unlink(missing_ok=True)
        for lock in (LOCK_FILE, TURN_FILE):
            (self.folder / lock).unlink(missing_ok=True)
        with suppress(OSError):
            (self.folder / LOG_FOLDER).rmdir()
            for folder in (self.folder, *self.folder.parents):
                folder.rmdir()
                if folder == self.made:
                    break


@contextmanager
def open_run(options: JobOptions) -> Iterator[Run]:
    """Take a command's folder for these options, for as long as the context lasts.

    What was finished there is used again, whatever options it was made with: files and ledgers say
    themselves what they are of. Only a search that was stopped on its way is not gone on with by
    other options: it is refused, or with ``--overwrite`` moved aside, as are then the results of
    other options of any command. Several machines of one job share a folder: each looks at it in
    its turn, and the first holds it. Raises OptionError or FileError.
    """
    folder, shared = options.run_dir, options.nnodes > 1
    results = results_folder(options)
    made = _first_missing(folder)
    with ExitStack() as locks, ExitStack() as turn:

        def take() -> None:
            if options.node_rank == 0:
                locks.enter_context(_locked(folder / LOCK_FILE, results, wait=False))
            if shared:
                turn.enter_context(_locked(folder / TURN_FILE, results, wait=True))

        take()
        record = _record(options)
        earlier = _earlier(folder)
        difference = None if earlier is None else _difference(earlier, record)
        if difference is not None and options.overwrite:
            _move_aside(results)
            take()  # what we held went with the folder
            earlier = None
        elif difference is not None and _is_unfinished(folder, earlier):
            raise OptionError(
                f"{folder}: a search was stopped on its way there, and {difference}; finish it "
                "with the options it was begun with, start afresh with --overwrite, or choose "
                "another --workdir"
            )
        elif not shared and _is_alone(folder, results):
            remove_leftovers(results)
        record["measured"] = _measured(folder)
        if difference is None and _is_unfinished(folder, earlier):
            record["measured"] = (earlier or {}).get("measured", 0)  # gone on with
        write_json(folder / OPTIONS_FILE, record)
        turn.close()
        yield Run(folder, options, earlier, made)


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
def _locked(path: Path, named: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock `path` of a folder, which the user knows as part of `named`.

    The kernel drops it when the process ends, however it ends. Where the file system has no locks
    (some network ones) there is none.
    """
    with ExitStack() as held:
        try:
            lock = file_lock(path)
            held.enter_context(lock.acquire(timeout=_TURN_S if wait else 0))
        except Timeout as error:
            raise FileError(
                f"{named}: another osp-opt is at work there; wait for it, or choose another folder"
            ) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise FileError(f"{named}: cannot be written ({error.strerror})") from error
        yield


def _is_alone(folder: Path, results: Path) -> bool:
    """Whether no other command is at work in the folder of results, which several may share."""
    for lock in (results / STATE_FOLDER).glob(f"*/{LOCK_FILE}"):
        if lock.parent != folder:
            try:
                with file_lock(lock).acquire(timeout=0):
                    pass
            except (Timeout, OSError, FileError):
                return False
    return True


def results_folder(options: JobOptions) -> Path:
    """The folder that holds everything that the command makes."""
    return getattr(options, "out_dir", options.run_dir)


def _first_missing(folder: Path) -> Path | None:
    """The topmost folder that has to be made for `folder`."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    return missing[-1] if missing else None


def _measured(folder: Path) -> int:
    """Bytes of finished measurements in the folder's ledgers."""
    return sum(path.stat().st_size for path in folder.glob("*.jsonl"))


def _is_unfinished(folder: Path, earlier: dict[str, Any] | None) -> bool:
    """Whether a search began there, measured something, and did not come to its end."""
    if earlier is None or earlier.get("finished") is True:
        return False
    begun = earlier.get("measured", 0)
    return _measured(folder) > (begun if isinstance(begun, int) else 0)


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
        for name in ("prompt_file", "schedule", "cache", "recipe")
        if (path := getattr(options, name, None)) is not None
    }
    if isinstance(options, SearchStepsOptions) and options.videos_path is not None:
        names = sorted(path.name for path in options.videos_path.iterdir())
        files["videos"] = options.videos_path / CALIBRATION_FILE
        if not files["videos"].is_file():
            del files["videos"]
            return {**_digests(files), "videos": "\n".join(names)}
    elif isinstance(options, SearchOptions):
        calibration = calibration_file(options.calibration_dir)
        if calibration.is_file():
            files["calibration"] = calibration
    return _digests(files)


def _digests(files: dict[str, Path]) -> dict[str, str]:
    return {name: fingerprint_folder(path) for name, path in files.items()}


def _earlier(folder: Path) -> dict[str, Any] | None:
    """What the last run there wrote; None for none, and for what cannot be understood."""
    try:
        earlier = read_json(folder / OPTIONS_FILE, "run file")
    except FileError:
        return None
    whole = isinstance(earlier, dict) and all(
        isinstance(earlier.get(part), dict) for part in ("identity", "inputs")
    )
    return earlier if whole else None


def _difference(earlier: dict[str, Any], record: dict[str, Any]) -> str | None:
    """How an earlier run differs from ``record``; None when it does not."""
    old, new = earlier["identity"], record["identity"]
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            return f"it had {name} {_shown(old.get(name))}, not {_shown(new.get(name))}"
    old, new = earlier["inputs"], record["inputs"]
    for name in sorted({*old} & {*new}):  # a calibration may have been made in between
        if old[name] != new[name]:
            return f"it was begun with other {name} contents"
    return None


def _shown(value: Any) -> str:
    text = "unset" if value is None or value == [] else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _move_aside(folder: Path) -> None:
    if Path.cwd().is_relative_to(folder.resolve()):
        raise OptionError(f"--overwrite: {folder} holds the current folder; choose one inside it")
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
