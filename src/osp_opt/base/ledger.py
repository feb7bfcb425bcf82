"""The ledger of finished measurements. No torch."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from io import BufferedWriter
from pathlib import Path
from typing import Any, TypeAlias

from osp_opt.base.artifacts import open_for_writing, parse_json, read_bytes
from osp_opt.base.errors import FileError

__all__ = ["Key", "TrialLedger", "key_text"]

Key: TypeAlias = str | Mapping[str, Any]
"""What was measured: a name, or fields (JSON values), which a report can read back."""

_MAX_BYTES = 1 << 28


def key_text(key: Key) -> str:
    """A key as one text; equal fields give equal texts."""
    return key if isinstance(key, str) else json.dumps(key, sort_keys=True)


class TrialLedger:
    """An append-only file of finished measurements, one JSON object a line: the resume ledger.

    Each line is written and synced before `add` returns. A process killed while writing leaves a
    torn last line, which is dropped when the ledger is opened again; any other bad line, also one
    that was edited, is an error. Of several lines with one key the last counts. Only one process
    may write.

    Args:
        path: the file; made with its folder at the first `add`.

    Raises FileError when the file cannot be read, or is damaged in the middle.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._trials: dict[str, tuple[Key, dict[str, Any]]] = {}
        self._whole = self._read()

    def __len__(self) -> int:
        return len(self._trials)

    def keys(self) -> list[Key]:
        """The keys of all finished measurements, oldest first."""
        return [key for key, _ in self._trials.values()]

    def records(self) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
        """Fields and values of the measurements whose keys have fields, oldest first."""
        for key, values in self._trials.values():
            if not isinstance(key, str):
                yield key, values

    def get(self, key: Key) -> dict[str, Any] | None:
        """The values recorded under `key`, or None."""
        found = self._trials.get(key_text(key))
        return None if found is None else found[1]

    def add(self, key: Key, values: dict[str, Any]) -> None:
        """Record `values` (JSON, finite numbers) under `key`, durably."""
        trial = {"key": key, "values": values}
        line = json.dumps({**trial, "check": _checksum(trial)}, allow_nan=False) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with BufferedWriter(open_for_writing(self.path, keep=True)) as stream:
                stream.truncate(self._whole)  # what a killed process left half-written
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written ({error.strerror})") from error
        self._whole += len(line.encode())
        self._trials[key_text(key)] = key, values

    def _read(self) -> int:
        """Load the whole lines; the offset behind the last of them."""
        if not self.path.exists():
            return 0
        data = read_bytes(self.path, "ledger", _MAX_BYTES)
        *lines, _torn = data.split(b"\n")
        whole = 0
        for number, line in enumerate(lines, start=1):
            try:
                trial = parse_json(line)
                if trial.get("check", _checksum(trial)) != _checksum(trial):
                    raise ValueError("changed since it was written")
                key = trial["key"] if isinstance(trial["key"], dict) else str(trial["key"])
                self._trials[key_text(key)] = key, dict(trial["values"])
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                if number == len(lines) and not _torn:
                    break  # a torn line that happened to end in a newline
                raise FileError(
                    f"{self.path}: line {number} is not a trial; delete that line to go on"
                ) from error
            whole += len(line) + 1
        return whole


def _checksum(trial: Mapping[str, Any]) -> str:
    """Of key and values: whoever reads a measurement relies on its fields, edited ones are told."""
    text = json.dumps([trial["key"], trial["values"]], sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"
