"""The one exception tree: the library raises, only the command line prints and exits.

::

    OspOptError                 exit code 1
    |-- InputError              exit code 2: something that the user can correct
    |   |-- OptionError         an option, or a combination of options
    |   |-- FileError           a file is missing, unreadable, corrupt or too large
    |   |-- CheckpointError     a model folder is not what it should be
    |   |-- ScheduleError       a timestep schedule
    |   |-- PolicyError         a cache policy
    |   |-- RecipeError         a recipe of `optimize`
    |   |-- CalibrationError    calibration statistics or videos
    |   |-- ShapeError          frames, height or width
    |   |-- DeviceError         the machine lacks a device, or has not so many
    |   `-- FfmpegError         ffmpeg is missing, or cannot do what it is needed for
    `-- WorkerError             a worker process died, hung or could not be started

The text of an error is one line: which option or file, what was found, what to do about it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

_FULL = (errno.ENOSPC, errno.EDQUOT)


class OspOptError(Exception):
    """Base of everything that osp-opt raises on purpose."""

    exit_code = 1


class InputError(OspOptError):
    """The user's input is at fault, and the text says how to correct it."""

    exit_code = 2


class OptionError(InputError):
    """An option has an impossible value, or contradicts another one."""


class FileError(InputError):
    """A file is missing, unreadable, corrupt, too large or cannot be written."""


class CheckpointError(InputError):
    """A model folder lacks something, or holds something else than was asked for."""


class ScheduleError(InputError):
    """A timestep schedule is malformed or cannot be used here."""


class PolicyError(InputError):
    """A cache policy is malformed or does not fit the model or the number of steps."""


class RecipeError(InputError):
    """A recipe is malformed, or its parts do not fit each other."""


class CalibrationError(InputError):
    """Calibration statistics or videos are missing, corrupt or belong to something else."""


class ShapeError(InputError):
    """A number of frames, a height or a width that cannot be sampled."""


class DeviceError(InputError):
    """The machine lacks the device that was asked for, or not so many of them."""


class FfmpegError(InputError):
    """The ffmpeg that writes and reads videos is missing or cannot do it."""


class WorkerError(OspOptError):
    """A worker process died, hung or could not be started.

    lost: the ranks that gave no sign of life, where that is what happened.
    """

    def __init__(self, message: str, lost: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.lost = tuple(lost)


def first_line(error: BaseException) -> str:
    """What an error of somebody else says, as part of a line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def file_errors_as(kind: type[InputError]) -> Iterator[None]:
    """A file that cannot be read is an error of what it is a file of."""
    try:
        yield
    except FileError as error:
        raise kind(str(error)) from error


@contextmanager
def naming_files() -> Iterator[None]:
    """Errors of the file system that nobody foresaw become FileErrors, with the path's name.

    A look at a path can fail anywhere: no permission for a folder above it, a name too long, a
    disk that went away. For the entry points of commands and workers.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.filename is not None:
            path = error.filename
            path = path.decode(errors="replace") if isinstance(path, bytes) else path
            raise FileError(f"{path}: cannot be used ({reason}); check the path") from error
        if error.errno in _FULL:
            raise FileError(f"{reason}; make room, then run the same command again") from error
        raise
