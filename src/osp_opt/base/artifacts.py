"""Files that survive: written whole or not at all, read with limits, fingerprinted. No torch."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any

from filelock import FileLock

from osp_opt.base.errors import FileError, first_line

FILE_MODE = 0o640
"""Permissions of what we write, before the umask takes more away."""

PROVENANCE = ".meta.json"
"""What the name of a file's provenance ends in."""

JSON_MAX_BYTES = 2 * 2**20
JSON_MAX_DEPTH = 16
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")  # "owner/name"

_DIGITS = 300  # of an integer; tokenizers' files hold int(1e30)
_WHOLE_BYTES = 64 * 2**20  # files up to this size are hashed whole
_EDGE_BYTES = 2**20  # of larger ones this much is hashed at the start, in the middle, at the end
_FINGERPRINT_NAMES = (".json", ".safetensors", ".bin", ".ckpt", ".model")


def open_for_writing(path: str | Path, *, keep: bool = False) -> FileIO:
    """Open a file of ours, unbuffered: emptied, or with `keep` to be added to.

    Only a plain file: a symbolic link is not followed, a file with several names, whose others
    would change too, is not touched. Its permissions become 0640 or tighter. Raises FileError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags | (os.O_APPEND if keep else 0), FILE_MODE)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise OSError(errno.EEXIST, "no plain file of its own stands there; remove it")
            if found.st_mode & 0o777 & ~FILE_MODE:
                os.fchmod(descriptor, found.st_mode & FILE_MODE)
            if not keep:
                os.ftruncate(descriptor, 0)
        except BaseException:
            os.close(descriptor)
            raise
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        if getattr(error, "errno", None) == errno.ELOOP:
            reason = "a symbolic link stands there, which is not followed; remove it"
        raise FileError(f"{path}: cannot be written ({reason})") from error
    return os.fdopen(descriptor, "wb", buffering=0)


def check_place(path: Path, flag: str) -> None:
    """Refuse a place where nothing can be written, before any work is done for it.

    Raises FileError naming `flag`.
    """
    standing = next(place for place in (path, *path.absolute().parents) if place.exists())
    reason = "" if standing.is_dir() or standing == path else "is no folder"
    if not os.access(standing, os.W_OK, effective_ids=os.access in os.supports_effective_ids):
        reason = "is not ours to write in" if standing.is_dir() else "is not ours to write"
    if reason:
        raise FileError(f"{flag} {path}: cannot be written ({standing} {reason})")


def file_lock(path: str | Path) -> FileLock:
    """The lock on a file of ours, which is made with its folder. Raises FileError, OSError."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    open_for_writing(path, keep=True).close()
    return FileLock(path)


def open_for_reading(path: str | Path, what: str) -> FileIO:
    """Open a regular file, unbuffered; ``what`` names its role in error texts.

    Nothing else can be opened by mistake: a pipe or a device would be waited for. Raises FileError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise FileError(f"{what} {path}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        # ValueError: a path with a null byte in it.
        reason = getattr(error, "strerror", None) or first_line(error)
        raise FileError(f"{what} {path}: cannot be read ({reason})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileError(f"{what} {path}: is not a regular file; check the path")
    return os.fdopen(descriptor, "rb", buffering=0)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that becomes ``path`` when the block succeeds.

    The temporary name keeps the suffix (encoders choose a format by it). Whoever reads ``path``
    sees the old file or the whole new one, also after a crash. A symbolic link at ``path`` is
    replaced, not followed. Raises FileError when the folder cannot be written.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem[:100]}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Created first, so that the file has our permissions whatever writes into it.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, FILE_MODE))
        yield temporary
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    except OSError as error:
        raise FileError(f"{target}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):  # the error that brought us here says more
            temporary.unlink(missing_ok=True)


def remove_partial(path: str | Path) -> None:
    """Remove what writers of ``path`` left half-written when they were killed.

    Only while nobody else writes it.
    """
    target = Path(path)
    for left in target.parent.glob(f".{glob.escape(target.stem[:100])}.*.part{target.suffix}"):
        left.unlink(missing_ok=True)


def atomic_write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all. Raises FileError."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: str | Path, data: str) -> None:
    """Write ``data`` as UTF-8 to ``path``, whole or not at all. Raises FileError."""
    atomic_write_bytes(path, data.encode())


def write_json(path: str | Path, obj: Any) -> None:
    """Write ``obj`` as strict JSON, indented by 4. Raises FileError, ValueError on NaN."""
    atomic_write_text(path, json.dumps(obj, indent=4, allow_nan=False) + "\n")


def read_json(
    path: str | Path,
    what: str,
    max_bytes: int = JSON_MAX_BYTES,
    max_depth: int = JSON_MAX_DEPTH,
) -> Any:
    """The JSON value in ``path``; ``what`` names its role in error texts ("schedule").

    Raises FileError when the file is missing, unreadable, larger than ``max_bytes``, not JSON,
    nested deeper than ``max_depth``, has a key twice, or holds NaN or an infinity.
    """
    text = read_bytes(path, what, max_bytes)
    try:
        return parse_json(text, max_depth)
    except ValueError as error:
        raise FileError(f"{what} {path}: not valid JSON ({first_line(error)})") from error


def read_bytes(path: str | Path, what: str, max_bytes: int) -> bytes:
    """The content of a regular file of at most ``max_bytes``. Raises FileError."""
    with open_for_reading(path, what) as stream:
        try:
            data = _at_most(stream, max_bytes + 1)
        except OSError as error:
            raise FileError(f"{what} {path}: cannot be read ({error.strerror})") from error
    if len(data) > max_bytes:
        raise FileError(f"{what} {path}: larger than {max_bytes:,} bytes; not a {what}")
    return data


def file_inside(folder: Path, name: object) -> Path | None:
    """The regular file that a list in ``folder`` calls ``name``; None when it is none there.

    Lists may come from others: a name that leads out of the folder, also over a link, is none.
    """
    if not isinstance(name, str):
        return None
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
        return path if inside and path.is_file() else None
    except (OSError, ValueError, RuntimeError):
        return None  # too long, a null byte, or a circle of links


def fingerprint_folder(paths: str | Path | Iterable[str | Path]) -> str:
    """SHA-256 (hex) over the names and contents of the model files in one or more folders.

    Configurations, tokenizers and weights count, nothing else does. Of a file over 64 MiB its
    size and 1 MiB at the start, in the middle and at the end stand for the rest, because reading
    20 GB of weights twice would cost minutes. Raises FileError when nothing can be read.
    """
    folders = [paths] if isinstance(paths, (str, Path)) else list(paths)
    digest = hashlib.sha256()
    for folder in map(Path, folders):
        files = [folder] if folder.is_file() else sorted(filter(_counts, folder.rglob("*")))
        if not files:
            raise FileError(f"{folder}: no model files found; check the path")
        for file in files:
            name = file.name if file == folder else file.relative_to(folder).as_posix()
            try:
                _digest_file(digest, name, file)
            except OSError as error:
                raise FileError(f"{file}: cannot be read ({error.strerror})") from error
    return digest.hexdigest()


def meta_path(path: str | Path) -> Path:
    """Where the provenance of the artifact ``path`` stands: ``<name>.meta.json`` beside it."""
    target = Path(path)
    return target.with_name(target.name + PROVENANCE)


def write_meta(path: str | Path, meta: dict[str, Any]) -> None:
    """Write the provenance of the artifact ``path``. Raises FileError."""
    write_json(meta_path(path), meta)


def read_meta(path: str | Path) -> dict[str, Any] | None:
    """The provenance of the artifact ``path``; None when it has none (a file from elsewhere).

    Raises FileError when a sidecar exists and is not a JSON object.
    """
    sidecar = meta_path(path)
    if not sidecar.exists():
        return None
    value = read_json(sidecar, "provenance file")
    if not isinstance(value, dict):
        raise FileError(f"provenance file {sidecar}: not a JSON object; delete or restore it")
    return value


def setting_of(about: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a sidecar, or a take of a manifest, says of the setting; empty where it does not."""
    found = (about or {}).get("setting")
    return found if isinstance(found, dict) else {}


def beside_others(path: Path, asked: dict[str, Any], tag: str) -> Path:
    """Where a result that was `asked` for belongs: `path`, unless that holds another result.

    What was asked for stands in the sidecar, under "asked". Another result, also one without a
    sidecar, is left alone: the new one is written beside it, with ``-tag`` in its name.
    """
    if not path.exists() or (read_meta(path) or {}).get("asked") == asked:
        return path
    return path.with_name(f"{path.stem}-{tag}{path.suffix}")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _counts(file: Path) -> bool:
    return (
        file.suffix in _FINGERPRINT_NAMES and not file.name.endswith(PROVENANCE) and file.is_file()
    )


def _digest_file(digest: Any, name: str, file: Path) -> None:
    size = file.stat().st_size
    digest.update(f"{name}\0{size}\0".encode())
    with open_for_reading(file, "model file") as stream:
        if size <= _WHOLE_BYTES:
            while chunk := stream.read(_EDGE_BYTES):
                digest.update(chunk)
            return
        for offset in (0, size // 2, size - _EDGE_BYTES):
            stream.seek(offset)
            digest.update(_at_most(stream, _EDGE_BYTES))


def parse_json(text: str | bytes, max_depth: int = JSON_MAX_DEPTH) -> Any:
    """The JSON value in a text. Raises ValueError for anything else, for values that no other
    reader would take (NaN, infinities, half characters) and for deep nesting.
    """
    try:
        value = json.loads(
            text,
            parse_constant=_refuse,
            parse_float=_finite,
            parse_int=_whole,
            object_pairs_hook=_unique_keys,
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check(value, max_depth)
    return value


def _refuse(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _whole(text: str) -> int:
    if len(text) > _DIGITS:  # no float could take it
        raise ValueError(f"{text[:20]}... is too large a number")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.20} is not finite")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _check(value: Any, max_depth: int) -> None:
    """Refuse deep nesting, and texts that have no UTF-8 (halves of surrogate pairs)."""
    level = [value]
    for _ in range(max_depth + 1):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode()  # an error of it is a ValueError
            elif isinstance(item, list):
                below += item
            elif isinstance(item, dict):
                below += item
                below += item.values()
        if not below:
            return
        level = below
    raise ValueError("nested too deeply")


def _at_most(stream: FileIO, size: int) -> bytes:
    """The next bytes, `size` of them unless the file ends before."""
    parts = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
