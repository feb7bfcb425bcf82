"""Files that survive: written whole or not at all, read with limits, fingerprinted. No torch."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from osp_opt.base.errors import FileError

FILE_MODE = 0o640
"""Permissions of what we write, before the umask takes more away."""

JSON_MAX_BYTES = 16 * 2**20
JSON_MAX_DEPTH = 16

_WHOLE_BYTES = 64 * 2**20  # files up to this size are hashed whole
_EDGE_BYTES = 2**20  # of larger ones this much is hashed at the start, in the middle, at the end
_FINGERPRINT_NAMES = (".json", ".safetensors", ".bin", ".ckpt", ".model")
_PRIVATE_NAMES = (".meta.json",)


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
    source = Path(path)
    text = read_bytes(source, what, max_bytes)
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
        _check(value, max_depth)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{what} {source}: not valid JSON ({_first_line(error)})") from error
    return value


def read_bytes(path: str | Path, what: str, max_bytes: int) -> bytes:
    """The content of a regular file of at most ``max_bytes``. Raises FileError."""
    source = Path(path)
    try:
        if not source.is_file():
            state = "is not a regular file" if source.exists() else "no such file"
            raise FileError(f"{what} {source}: {state}; check the path")
        with source.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        # ValueError: a path with a null byte in it.
        raise FileError(f"{what} {source}: cannot be read ({_first_line(error)})") from error
    if len(data) > max_bytes:
        raise FileError(f"{what} {source}: larger than {max_bytes:,} bytes; not a {what}")
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
    return target.with_name(target.name + ".meta.json")


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
        file.suffix in _FINGERPRINT_NAMES
        and not file.name.endswith(_PRIVATE_NAMES)
        and file.is_file()
    )


def _digest_file(digest: Any, name: str, file: Path) -> None:
    size = file.stat().st_size
    digest.update(f"{name}\0{size}\0".encode())
    with file.open("rb") as stream:
        if size <= _WHOLE_BYTES:
            while chunk := stream.read(_EDGE_BYTES):
                digest.update(chunk)
            return
        for offset in (0, size // 2, size - _EDGE_BYTES):
            stream.seek(offset)
            digest.update(stream.read(_EDGE_BYTES))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not allowed")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key appears twice")
    return result


def _check(value: Any, depth: int) -> None:
    """Refuse what json.loads lets through: overflowing floats such as 1e999, deep nesting."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    if isinstance(value, (dict, list)):
        if depth == 0:
            raise ValueError("nested too deeply")
        for item in value.values() if isinstance(value, dict) else value:
            _check(item, depth - 1)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
