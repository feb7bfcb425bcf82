"""A video that cannot be written: its latents stay, and the next run only writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from running import Job

from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import FileError
from osp_opt.options import CalibrateOptions, SampleOptions


@pytest.fixture
def broken_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An ffmpeg that starts and fails, until the environment is as before."""
    script = tmp_path / "ffmpeg"
    script.write_text("#!/bin/sh\necho 'Error: no space left' >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(script))
    return monkeypatch


def test_sample(
    model_flags: dict[str, Any], run_job: Job, broken_ffmpeg: pytest.MonkeyPatch
) -> None:
    options = SampleOptions(**model_flags, steps=2, text_prompt=("a", "b"), raw=True)
    with pytest.raises(FileError, match=r"mp4|mkv.*no space left.*latents are kept.*run the same"):
        run_job(options)
    (kept,) = options.out_dir.glob("001-*.latents.safetensors")
    seconds = (read_meta(kept) or {})["denoising_seconds"]
    broken_ffmpeg.undo()
    assert "1 were denoised already" in run_job(options)
    assert not list(options.out_dir.glob("*.latents.*"))
    video = options.out_dir / "001-a-s42.mp4"
    assert (read_meta(video) or {})["denoising_seconds"] == seconds
    afresh = options.model_copy(update={"out": options.workdir / "afresh"})
    run_job(afresh)
    for name in (video.name, "002-b-s42.mp4", "001-a-s42.frames.mkv"):
        assert (options.out_dir / name).read_bytes() == (afresh.out_dir / name).read_bytes()


def test_latents_of_another_setting_are_not_taken(
    model_flags: dict[str, Any], run_job: Job, broken_ffmpeg: pytest.MonkeyPatch
) -> None:
    options = SampleOptions(**model_flags, steps=2, text_prompt=("a",))
    with pytest.raises(FileError, match="latents are kept"):
        run_job(options)
    broken_ffmpeg.undo()
    other = options.model_copy(update={"guidance_scale": 3.0})
    assert "denoised already" not in run_job(other)


def test_calibrate(
    model_flags: dict[str, Any], run_job: Job, broken_ffmpeg: pytest.MonkeyPatch
) -> None:
    options = CalibrateOptions(**model_flags, steps=4, text_prompt=("a",))
    with pytest.raises(FileError, match="cannot be written"):
        run_job(options)
    (statistics,) = options.out_dir.glob("statistics/*")
    before = statistics.stat().st_mtime_ns
    broken_ffmpeg.undo()
    run_job(options)
    assert statistics.stat().st_mtime_ns == before
    afresh = options.model_copy(update={"out": options.workdir / "afresh"})
    run_job(afresh)
    for name in ("calibration.safetensors", "videos/001-a.mp4"):
        assert (options.out_dir / name).read_bytes() == (afresh.out_dir / name).read_bytes()
