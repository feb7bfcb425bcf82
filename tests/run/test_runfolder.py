"""A run folder belongs to one set of options and to one process at a time."""

from __future__ import annotations

import errno
import json
import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from folders import calibration

from osp_opt.base.errors import (
    CalibrationError,
    CheckpointError,
    FileError,
    OptionError,
    ScheduleError,
)
from osp_opt.base.ledger import TrialLedger
from osp_opt.generate.prompts import given_prompts, read_prompt_file
from osp_opt.options import (
    OPTIONS_FILE,
    CalibrateOptions,
    SampleOptions,
    SearchCacheOptions,
    SearchStepsOptions,
)
from osp_opt.run.checks import check_before_launch, with_predecessors
from osp_opt.run.folder import Run, load_run, open_run


def options(workdir: Path | str, **values: object) -> SampleOptions:
    return SampleOptions.model_validate({"workdir": workdir, **values})


def search(workdir: Path, **values: object) -> SearchStepsOptions:
    return SearchStepsOptions.model_validate({"workdir": workdir, "videos_path": workdir, **values})


def measure(run: Run, count: int) -> None:
    """What a search does first."""
    ledger = TrialLedger(run.folder / "trials.jsonl")
    for number in range(count):
        ledger.add({"number": number, "total": count}, {"mse": 1.0})


def test_videos_of_other_options_join_a_folder(tmp_path: Path) -> None:
    """State has its own place; --overwrite keeps what was there beside."""
    with open_run(options(tmp_path, steps=20)) as run:
        (tmp_path / "samples" / "video.mp4").write_text("precious")
    assert run.folder == tmp_path / "samples" / ".osp-opt" / "sample"
    with open_run(options(tmp_path, steps=30)):
        assert (tmp_path / "samples" / "video.mp4").exists()
    with open_run(options(tmp_path, steps=40, overwrite=True)) as fresh:
        assert fresh.folder == run.folder
        assert not (tmp_path / "samples" / "video.mp4").exists()
    assert (tmp_path / "samples.old-1" / "video.mp4").read_text() == "precious"


def test_an_unfinished_search_is_not_gone_on_with_by_other_options(tmp_path: Path) -> None:
    with open_run(search(tmp_path, steps=50)) as run:
        measure(run, 3)
    with (
        pytest.raises(OptionError, match=r"had steps \[50\], not \[25\].*--workdir"),
        open_run(search(tmp_path, steps=25)),
    ):
        pass
    with open_run(search(tmp_path, steps=50, debug=True)) as again:
        again.finish()
    with open_run(search(tmp_path, steps=25)):
        pass  # begun, and nothing measured
    with open_run(search(tmp_path, steps=33)) as third:
        measure(third, 5)
    with pytest.raises(OptionError, match="--overwrite"), open_run(search(tmp_path, steps=25)):
        pass
    with open_run(search(tmp_path, steps=25, overwrite=True)) as fresh:
        assert not (fresh.folder / "trials.jsonl").exists()
    assert (tmp_path / "search-steps.old-1" / "trials.jsonl").exists()


def test_an_input_file_counts_by_content(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red ball")
    given = search(tmp_path, prompt_file=prompts)
    with open_run(given) as run:
        measure(run, 1)
    prompts.write_text("a blue ball")
    with pytest.raises(OptionError, match="other prompt_file contents"), open_run(given):
        pass


def test_a_refused_run_leaves_nothing(tmp_path: Path) -> None:
    with open_run(options(tmp_path / "w", steps=20)) as run:
        (run.folder / "logs").mkdir()
        (run.folder / "logs" / "rank0.log").write_text("refused")
        run.forget()
    assert list(tmp_path.iterdir()) == []
    with open_run(options(tmp_path / "w", steps=30)) as kept:
        (tmp_path / "w" / "samples" / "video.mp4").write_text("precious")
    with open_run(options(tmp_path / "w", steps=20)) as run:
        run.forget()
    assert load_run(kept.folder / OPTIONS_FILE).options == options(tmp_path / "w", steps=30)
    assert (tmp_path / "w" / "samples" / "video.mp4").exists()


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    given = options(tmp_path)
    with (
        open_run(given),
        pytest.raises(FileError, match="another osp-opt"),
        open_run(given),
    ):
        pass
    with open_run(given):
        pass


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    with open_run(options(tmp_path)):
        videos = tmp_path / "samples" / "videos"
        videos.mkdir()
        (videos / ".v.0123abcd.part.mp4").write_text("half")
        (videos / ".hidden.mp4").write_text("the user's")
    with open_run(options(tmp_path)):
        assert os.listdir(videos) == [".hidden.mp4"]


def test_what_another_command_is_writing_is_no_leftover(tmp_path: Path) -> None:
    """`sample` and `calibrate` may be at work in one folder at once."""
    out = tmp_path / "videos"
    with open_run(CalibrateOptions(workdir=tmp_path, out=out)):
        (out / ".v.0123abcd.part.mp4").write_text("being written")
        with open_run(options(tmp_path, out=out)):
            assert (out / ".v.0123abcd.part.mp4").exists()
    with open_run(options(tmp_path, out=out)):
        assert not (out / ".v.0123abcd.part.mp4").exists()


def test_a_finished_search_that_is_begun_again_refuses_nobody(tmp_path: Path) -> None:
    with open_run(search(tmp_path, steps=50)) as run:
        measure(run, 3)
        run.finish()
    with open_run(search(tmp_path, steps=50)):
        pass  # killed before it measured anything new
    with open_run(search(tmp_path, steps=25)):
        pass


def test_machines_of_one_job_share_a_folder(tmp_path: Path) -> None:
    """What one of them is writing is not another's leftover; --overwrite moves one folder once."""
    with open_run(options(tmp_path, steps=20)):
        (tmp_path / "samples" / "old.mp4").write_text("old")
    several = {"steps": 30, "nnodes": 2, "master_addr": "10.0.0.1", "overwrite": True}
    with open_run(options(tmp_path, **several)) as first:
        (first.folder / ".v.0123abcd.part.mp4").write_text("being written")
        with open_run(options(tmp_path, **several, node_rank=1)) as second:
            assert second.folder == first.folder
            assert (second.folder / ".v.0123abcd.part.mp4").exists()
    assert [path.name for path in tmp_path.glob("*.old-*")] == ["samples.old-1"]


def test_the_first_machine_holds_the_folder_for_all(tmp_path: Path) -> None:
    def node(rank: int) -> SampleOptions:
        return options(tmp_path, nnodes=2, node_rank=rank, master_addr="a", master_port=1)

    with open_run(node(0)), open_run(node(1)):
        for other in (options(tmp_path), node(0)):
            with pytest.raises(FileError, match="another osp-opt is at work"), open_run(other):
                pass
    with open_run(options(tmp_path)):
        pass


def test_the_current_folder_is_not_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "..", tmp_path):
        with open_run(options(tmp_path / "w", out=out, steps=20)):
            pass
        again = options(tmp_path / "w", out=out, steps=30, overwrite=True)
        with pytest.raises(OptionError, match=r"--overwrite: .*current folder"), open_run(again):
            pass


def test_spaces_at_the_ends_of_a_path_are_kept(tmp_path: Path) -> None:
    with open_run(options(f"{tmp_path}/ w ", out=f"{tmp_path}/ v ")) as run:
        assert run.folder.is_relative_to(tmp_path / " v ")
        assert load_run(run.folder / OPTIONS_FILE).options.out == tmp_path / " v "


@pytest.mark.parametrize(("number", "refused"), [(errno.ENOLCK, False), (errno.EIO, True)])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, refused: bool
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with (
        pytest.raises(FileError, match="cannot be written") if refused else nullcontext(),
        open_run(options(tmp_path)) as run,
    ):
        assert load_run(run.folder / OPTIONS_FILE).folder == run.folder


def test_the_worker_reads_what_was_written(tmp_path: Path) -> None:
    given = options(tmp_path, text_prompt=["a", "b"], steps=12, seed=5)
    with open_run(given) as run:
        loaded = load_run(run.folder / OPTIONS_FILE)
    assert loaded.options == given
    assert loaded.folder == run.folder


def test_a_damaged_options_file_claims_nothing(tmp_path: Path) -> None:
    with open_run(options(tmp_path)) as run:
        pass
    (run.folder / OPTIONS_FILE).write_text("{")
    with pytest.raises(FileError):
        load_run(run.folder / OPTIONS_FILE)
    with open_run(options(tmp_path)) as again:
        assert load_run(again.folder / OPTIONS_FILE).options == options(tmp_path)


def test_prompts_from_files(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\r\n\n  two\x07three  \n".encode())
    assert read_prompt_file(path) == ["one", "two three"]
    path.write_text(" \n\n")
    with pytest.raises(FileError, match="holds no prompt"):
        read_prompt_file(path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(FileError, match="UTF-8"):
        read_prompt_file(path)
    assert given_prompts(options(tmp_path)) is None
    assert given_prompts(options(tmp_path, text_prompt=[" a\tball "])) == ["a ball"]


def test_files_of_the_reference_tool_pass_the_checks(golden: Path) -> None:
    files = golden / "reference_tool_files"
    schedule = files / "searched_schedule.txt"
    cache = files / "dit_cache_config.json"
    given = options(Path("w"), schedule=schedule, cache=cache, steps=100, model_path="of/the-hub")
    notes = check_before_launch(given)
    assert len(notes) == 1
    assert "--steps 100 is not used" in notes[0]
    assert check_before_launch(options(Path("w"), schedule=schedule)) == []


@pytest.mark.parametrize("text", ["{}", "[]", '["a"]', "[true]"])
def test_a_file_that_is_no_schedule_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.txt").write_text(text)
    with pytest.raises(ScheduleError, match=r"s\.txt"):
        check_before_launch(options(tmp_path, schedule=tmp_path / "s.txt"))


def test_another_model_class_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "LatteT2V"}')
    with pytest.raises(CheckpointError, match=r"LatteT2V, not OpenSoraT2V"):
        check_before_launch(options(tmp_path / "w", model_path=str(tmp_path)))


def test_calibration_is_found_where_it_was_put(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    calibration()[0].save(folder / "calibration.safetensors")
    given = SearchCacheOptions(workdir=tmp_path / "w", calibration=folder)
    assert check_before_launch(given) == []
    missing = SearchCacheOptions(workdir=tmp_path / "w", calibration=tmp_path / "no")
    with pytest.raises(CalibrationError, match=r"--calibration .*no: holds no calibration"):
        check_before_launch(missing)
    open_to_find = SearchCacheOptions(workdir=tmp_path / "w")
    (note,) = check_before_launch(open_to_find)
    assert "8 videos of 100 steps" in note, "what making one costs"
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "calibration.json").write_text(json.dumps({"folder": str(folder)}))
    found, notes = with_predecessors(open_to_find)
    assert isinstance(found, SearchCacheOptions)
    assert found.calibration == folder
    assert str(folder) in notes[0]
    assert check_before_launch(found) == []


def test_search_cache_is_for_the_schedule_found_before(tmp_path: Path, golden: Path) -> None:
    schedule = tmp_path / "search-steps" / "searched_schedule.txt"
    assert with_predecessors(SearchCacheOptions(workdir=tmp_path))[1] == []
    schedule.parent.mkdir()
    schedule.write_bytes((golden / "reference_tool_files/searched_schedule.txt").read_bytes())
    found, notes = with_predecessors(SearchCacheOptions(workdir=tmp_path))
    assert isinstance(found, SearchCacheOptions)
    assert found.schedule == schedule
    assert str(schedule) in notes[0]
    uniform, notes = with_predecessors(SearchCacheOptions(workdir=tmp_path, steps=100))
    assert isinstance(uniform, SearchCacheOptions)
    assert (uniform.schedule, notes) == (None, [])
