"""Files are whole or absent, readers have limits, fingerprints see every byte."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from osp_opt.base.artifacts import (
    atomic_path,
    atomic_write_text,
    fingerprint_folder,
    meta_path,
    read_json,
    read_meta,
    write_json,
    write_meta,
)
from osp_opt.base.errors import FileError


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, [1])
    with pytest.raises(ZeroDivisionError), atomic_path(target) as temporary:
        temporary.write_text(f"half {1 / 0}")
    assert read_json(target, "file") == [1]
    assert os.listdir(tmp_path) == ["a.json"]


def test_permissions_and_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        atomic_write_text(tmp_path / "tight", "x")
        os.umask(0)
        atomic_write_text(tmp_path / "usual", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "tight").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "usual").stat().st_mode) == 0o640


def test_a_link_is_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "out.txt").symlink_to(tmp_path / "victim")
    atomic_write_text(tmp_path / "out.txt", "new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert (tmp_path / "out.txt").read_text() == "new"


def test_the_temporary_name_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "v.mp4") as temporary:
        assert temporary.suffix == ".mp4"
        assert temporary.parent == tmp_path


def test_unwritable_places_are_a_file_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot be written"):
        atomic_write_text(tmp_path / "file" / "below", "x")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "text",
    ["{", "", "[NaN]", "[Infinity]", "[1e999]", '{"a": 1, "a": 2}', "[" * 40 + "]" * 40, "\ud800"],
)
def test_bad_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(FileError, match=r"schedule .*bad\.json: not valid JSON"):
        read_json(path, "schedule")


def test_other_unreadable_things_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_json(tmp_path / "none", "schedule")
    with pytest.raises(FileError, match="not a regular file"):
        read_json(tmp_path, "schedule")
    with pytest.raises(FileError, match=r"cannot be read|no such file"):
        read_json("a\0b", "schedule")
    write_json(tmp_path / "big", list(range(1000)))
    with pytest.raises(FileError, match="larger than 100 bytes"):
        read_json(tmp_path / "big", "schedule", max_bytes=100)


def test_a_fingerprint_depends_on_every_file_and_byte(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights.safetensors").write_bytes(bytes(100))
    first = fingerprint_folder(folder)
    (folder / "notes.txt").write_text("no part of the model")
    assert fingerprint_folder(folder) == first
    (folder / "weights.safetensors").write_bytes(bytes(99) + b"\1")
    second = fingerprint_folder(folder)
    (folder / "config.json").rename(folder / "config2.json")
    assert len({first, second, fingerprint_folder(folder)}) == 3
    with pytest.raises(FileError, match="no model files"):
        fingerprint_folder(tmp_path / "absent")


def test_provenance_stands_beside_its_file(tmp_path: Path) -> None:
    schedule = tmp_path / "searched_schedule.txt"
    assert read_meta(schedule) is None
    write_meta(schedule, {"steps": 50})
    assert read_meta(schedule) == {"steps": 50}
    meta_path(schedule).write_text("[]")
    with pytest.raises(FileError, match="not a JSON object"):
        read_meta(schedule)
