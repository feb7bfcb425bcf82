"""Every option that names a place, of every command: what cannot be used is refused in one line."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from osp_opt.base.artifacts import atomic_write_text, file_lock, open_for_reading, open_for_writing
from osp_opt.base.errors import FileError
from osp_opt.base.ledger import TrialLedger
from osp_opt.cli.app import main
from osp_opt.options import COMMANDS, SampleOptions, flag_of, option_extra
from osp_opt.options.base import PLACES
from osp_opt.run.folder import open_run

NOBODY = 65534
LOADED_LATER = ("run.launch", "evaluate.job", "report.job", "system.host")
OPTIONS = [
    (command, "" if option_extra(field)["positional"] else flag_of(name))
    for command, model in COMMANDS.items()
    for name, field in model.model_fields.items()
    if option_extra(field)["metavar"] in PLACES
]
OUTPUTS = [
    ["calibrate", "--out"],
    ["search-steps", "--out"],
    ["search-cache", "--out"],
    ["sample", "--out"],
    ["sample", "--workdir"],
    ["evaluate", "--reference", "videos", "--out"],
    ["report", "--out"],
]


@pytest.fixture
def as_stranger(tmp_path: Path) -> Iterator[Path]:
    """A folder that we may not enter, in one in which we may not write: also where root tests."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    for folder in tmp_path.parents:
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)
    tmp_path.chmod(0o555)
    for module in LOADED_LATER:  # a stranger may not be let to our Python either
        importlib.import_module(f"osp_opt.{module}")
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield closed
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o700)
        closed.chmod(0o700)


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command refuses."""
    assert main(argv) == 2, argv
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1, err
    assert not out
    return err


@pytest.mark.parametrize(("command", "flag"), OPTIONS)
def test_a_place_that_cannot_be_looked_at(
    command: str, flag: str, as_stranger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = Path("/tmp") / f"osp-opt-loop-{os.getpid()}"
    loop.symlink_to(loop)
    try:
        for place in (
            as_stranger / "inside",
            loop,
            "x" * 300,
            "/tmp/" + "deep/" * 1000,
            "a\0b",
            "",
        ):
            line = refused([command, *([flag] if flag else []), str(place)], capsys)
            assert (flag or {"report": "RUN", "export": "FILE"}[command]) in line
            assert "path" in line
    finally:
        loop.unlink()


@pytest.mark.parametrize("argv", OUTPUTS, ids=" ".join)
def test_a_place_that_cannot_be_written_is_refused_before_any_work(
    argv: list[str],
    as_stranger: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir("/")
    place = as_stranger.parent / "new" / "deeper"
    line = refused([*argv, str(place)], capsys)
    assert "cannot be written" in line
    assert str(place) in line


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
@pytest.mark.parametrize("flag", ["--prompt-file", "--schedule", "--cache", "--config"])
def test_what_is_no_file_is_not_waited_for(
    kind: str, flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Path("/dev/zero") if kind == "device" else tmp_path / "place"
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    line = refused(["sample", "--workdir", str(tmp_path / "w"), flag, str(place)], capsys)
    assert "not a regular file" in line
    assert not (tmp_path / "w").exists()


def test_no_file_of_ours_is_written_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    for linked in (os.symlink, os.link):
        victim.write_text("precious")
        place = tmp_path / "place"
        linked(victim, place)
        for write in (
            lambda place=place: open_for_writing(place).write(b"x"),
            lambda place=place: TrialLedger(place.with_name("l")).add("a", {}),
            lambda place=place: file_lock(place).acquire(timeout=0),
        ):
            if not (tmp_path / "l").exists():
                linked(victim, tmp_path / "l")
            with pytest.raises(FileError, match=r"place|l: "):
                write()
        atomic_write_text(place, "x")  # replaces the name
        assert victim.read_text() == "precious"
        place.unlink()
        (tmp_path / "l").unlink()


def test_every_file_of_a_run_is_tight(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with open_run(SampleOptions(workdir=tmp_path / "w", text_prompt=("a",))) as run:
            open_for_writing(run.folder / "log").write(b"x")
            (run.folder / "wide").touch(0o666)
            open_for_writing(run.folder / "wide", keep=True).close()
            TrialLedger(run.folder / "trials.jsonl").add("a", {"mse": 1.0})
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "w").rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert {path.stat().st_mode & 0o777 for path in files} == {0o640}


@pytest.mark.parametrize("command", ["sample", "report", "doctor"])
def test_a_current_folder_that_is_gone(
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert "the current folder is gone" in refused([command], capsys)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="not a regular file"):
        open_for_reading(tmp_path / "pipe", "weights")
    with pytest.raises(FileError, match="cannot be written"):
        open_for_writing(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["sample", "--config", ""], "config .: "),
        (["sample", "--cache-dir", "file", "--model-path", "a/b"], "--cache-dir file: "),
        (["sample", "--model-path", "empty"], "--model-path empty: no config.json"),
        (["sample", "--model-path", "many"], "many: no config.json in it; give"),
        (["sample", "--model-path", "many"], "choose one with --version: 29x480p, odd"),
        (
            ["sample", "--model-path", "many", "--version", "93x"],
            "93x: no such folder; many has 29",
        ),
        (["sample", "--model-path", "many/29x480p", "--height", "96"], "29x96x64 (frames x height"),
        (
            ["calibrate", "--model-path", "many/odd", "--width", "96"],
            "has sample_size [8, 'x'], not",
        ),
        (["search-cache", "--ratio", "1.2", "--num-frames", "9"], "9x64x64 (frames x height x wid"),
        (["sample", "--cache", "wide"], "wide: cache_block_start 2 + cache_num_blocks 30 goes"),
        (
            ["sample", "--cache", "late", "--steps", "20"],
            "late: cache_step_start 50 leaves nothing",
        ),
        (["sample", "--schedule", "falling"], "falling: entry 1 is 0.1 after 0.5"),
        (["search-cache", "--schedule", "far"], "far: entry 1 is 1.5; entries are timestep"),
        (["sample", "--schedule", "far", "--sampler", "PNDM"], "PNDM: takes no schedule; use one"),
        (["search-steps", "--calibration", "file"], "file: not a calibration file"),
        (["search-cache", "--calibration", "empty"], "--calibration empty: holds no calibration"),
    ],
)
def test_what_the_model_is_not_needed_for_is_refused_before_it_is_loaded(
    argv: list[str],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("something else")
    (tmp_path / "empty").mkdir()
    files: dict[str, object] = {"falling": [0.5, 0.1], "far": [0.0, 1.5]}
    fields = ("cache_block_start", "cache_num_blocks", "cache_step_start", "cache_step_interval")
    for name, values in (("wide", (2, 30, 5, 2)), ("late", (2, 3, 50, 2))):
        files[name] = dict(zip(fields, values, strict=True))
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    for name, size in (("29x480p", [8, 8]), ("odd", [8, "x"])):
        (tmp_path / "many" / name).mkdir(parents=True)
        config = {"_class_name": "OpenSoraT2V", "sample_size": size, "sample_size_t": 8}
        (tmp_path / "many" / name / "config.json").write_text(json.dumps(config))
    assert reason in refused(argv, capsys)
    assert sorted(os.listdir(tmp_path)) == sorted([*files, "empty", "file", "many"])
