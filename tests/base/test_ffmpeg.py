"""Any pixel format is read as ffmpeg converts it; an ffmpeg that cannot be used is named."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from browser import CHROMIUM, Browser

from osp_opt.base.errors import FfmpegError, FileError
from osp_opt.base.ffmpeg import check_ffmpeg
from osp_opt.base.video import read_video, write_lossless, write_video
from osp_opt.cli.app import main

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
FORMATS = {
    "libx264": ("yuv420p yuvj420p yuv422p yuv444p nv12 gray yuv420p10le yuv422p10le "
                "yuv444p10le gray10le"),
    "libx265": "yuv420p10le yuv422p12le yuv444p12le gray12le gbrp10le",
    "ffv1": ("gray16le gray10le yuv444p16le yuv422p12le gbrp12le gbrp16le yuva420p yuva444p10le "
             "bgra rgb48le ya8 yuv410p yuv411p"),
    "png": "rgba rgb48be rgba64be gray16be ya16be monob pal8",
    "prores_ks": "yuv422p10le yuva444p10le",
    "libvpx-vp9": "yuv420p yuv440p yuva420p yuv420p12le gbrp",
}  # fmt: skip
CASES = [(codec, pixels) for codec, all_of_it in FORMATS.items() for pixels in all_of_it.split()]
COLOURS = (
    *((255, 127, 51), (200, 60, 20), (20, 20, 230), (128, 128, 128)),
    *((10, 200, 90), (0, 0, 0), (255, 255, 255), (90, 30, 160)),
)


def ffmpeg(*arguments: str | Path, data: bytes = b"") -> bytes:
    command = [FFMPEG, "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=data, check=True, capture_output=True).stdout


@pytest.mark.parametrize(("codec", "pixels"), CASES)
def test_every_pixel_format_is_read_as_ffmpeg_converts_it(
    tmp_path: Path, codec: str, pixels: str
) -> None:
    rng = np.random.default_rng(len(codec + pixels))
    clip = rng.integers(0, 2**16, (3, 32, 64, 4), np.uint16)
    clip[:, :, :32] = 65535 * (np.arange(32)[None, None, :, None] > 15)  # black and white
    path = tmp_path / "clip.mkv"
    raw = ("-f", "rawvideo", "-pix_fmt", "rgba64le", "-s", "64x32", "-r", "12", "-i", "pipe:0")
    options = ("-x265-params", "log-level=none") if codec == "libx265" else ()
    ffmpeg(*raw, "-c:v", codec, "-pix_fmt", pixels, *options, path, data=clip.tobytes())
    wanted = ffmpeg(
        "-i", path, "-fps_mode", "passthrough", "-pix_fmt", "rgb24", "-f", "rawvideo", "-"
    )
    assert read_video(path).tobytes() == wanted


def test_ten_bits_are_as_near_as_eight(tmp_path: Path) -> None:
    clip = np.zeros((2, 64, 64, 3), np.uint8)
    clip[:, :32] = 255
    write_lossless(tmp_path / "clip.mkv", clip, 12)
    ffmpeg("-i", tmp_path / "clip.mkv", "-pix_fmt", "yuv420p10le", tmp_path / "ten.mp4")
    assert np.abs(read_video(tmp_path / "ten.mp4").astype(int) - clip).max() <= 3


def test_lossless_files_are_the_same_bytes(tmp_path: Path) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    for name in "ab":
        write_lossless(tmp_path / f"{name}.mkv", clip, 12)
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()


def stripes(path: Path) -> np.ndarray:
    clip = np.zeros((6, 32, 32 * len(COLOURS), 3), np.uint8)
    for number, colour in enumerate(COLOURS):
        clip[:, :, 32 * number : 32 * number + 32] = colour
    write_video(path, clip, 12)
    return np.array(COLOURS)


def test_colours_are_tagged_and_come_back(tmp_path: Path) -> None:
    colours = stripes(tmp_path / "a.mp4")
    assert np.abs(read_video(tmp_path / "a.mp4")[3, 16, 16::32] - colours).max() <= 3
    said = subprocess.run([FFMPEG, "-i", tmp_path / "a.mp4"], capture_output=True, text=True)
    assert "tv, smpte170m/bt709/bt709" in said.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_a_browser_shows_true_colours(tmp_path: Path) -> None:
    colours = stripes(tmp_path / "a.mp4")
    data = base64.b64encode((tmp_path / "a.mp4").read_bytes()).decode()
    page = tmp_path / "page.html"
    page.write_text(f'<video id="v" muted src="data:video/mp4;base64,{data}"></video>')
    with Browser(tmp_path / "profile") as browser:
        browser.open(page, 1000)
        shown = browser.run(
            """
            const video = document.getElementById("v");
            video.play();
            await new Promise(done => video.requestVideoFrameCallback(done));
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
            const context = canvas.getContext("2d");
            context.drawImage(video, 0, 0);
            return Array.from(context.getImageData(0, 16, canvas.width, 1).data);
            """
        )
    seen = np.array(shown).reshape(-1, 4)[16::32, :3]
    assert np.abs(seen - colours).max() <= 3


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def stand_ins(folder: Path) -> dict[str, tuple[Path, str]]:
    """Executables that are not the ffmpeg that is needed, and what is to be said of each."""
    (folder / "plain").write_text("no program")
    (folder / "garbage").write_bytes(b"\x7fELF" + bytes(100))
    (folder / "garbage").chmod(0o755)
    version = 'case "$*" in *-version*) echo "ffmpeg version {}"; exit 0;; esac\n'
    old = 'case "$*" in *fps_mode*) echo "Unrecognized option \'fps_mode\'" >&2; exit 1;; esac\n'
    bare = 'case "$*" in *libx264*) echo "Unknown encoder \'libx264\'" >&2; exit 1;; esac\n'
    go_on = f'exec {FFMPEG} "$@"'
    return {
        "missing": (folder / "none", "cannot be started"),
        "plain": (folder / "plain", "cannot be started"),
        "garbage": (folder / "garbage", "cannot be started"),
        "old": (script(folder / "old", version.format("4.4.2-0ubuntu1") + old + go_on), "too old"),
        "bare": (script(folder / "bare", bare + go_on), "without libx264"),
        "true": (script(folder / "true", "exit 0"), "is no ffmpeg"),
        "fails": (script(folder / "fails", version.format("7.1") + "exit 3"), "ended with 3"),
    }


KINDS = ["missing", "plain", "garbage", "old", "bare", "true", "fails"]


@pytest.mark.parametrize("kind", KINDS)
def test_an_ffmpeg_that_will_not_do_is_told_at_once_by_its_own_name(
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    executable, reason = stand_ins(tmp_path)[kind]
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(executable))
    with pytest.raises(FfmpegError, match=reason) as caught:
        check_ffmpeg()
    assert str(caught.value).startswith(f"ffmpeg {executable}: ")
    assert "IMAGEIO_FFMPEG_EXE" in str(caught.value)
    for argv in (
        ["sample", "--workdir", str(tmp_path / "w")],
        ["evaluate", "--reference", str(tmp_path), "--out", str(tmp_path / "e.json")],
    ):
        assert main(argv) == 2
        assert capsys.readouterr().err == f"osp-opt: error: {caught.value}\n"
    assert not (tmp_path / "w").exists()
    if kind in ("missing", "plain", "garbage"):
        (tmp_path / "v.mp4").write_bytes(b"")
        for use in (
            lambda: read_video(tmp_path / "v.mp4"),
            lambda: write_video(tmp_path / "w.mp4", np.zeros((1, 16, 16, 3), np.uint8), 12),
        ):
            with pytest.raises(FfmpegError, match=reason):
                use()


def test_one_that_will_do(tmp_path: Path) -> None:
    assert check_ffmpeg()
    with pytest.raises(FileError, match=r"none\.mp4: no such file"):
        read_video(tmp_path / "none.mp4")
