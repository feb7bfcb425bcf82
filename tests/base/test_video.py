"""Video and image files: what is written comes back, what is damaged is refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from osp_opt.base.errors import FileError, ShapeError
from osp_opt.base.video import (
    grid,
    read_image,
    read_video,
    video_frames,
    write_grid,
    write_image,
    write_lossless,
    write_video,
)


def moving_square(frames: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    """A red square moving right over a blue to green ramp: smooth, with every primary colour."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 1] = np.linspace(40, 200, width).astype(np.uint8)
    video[..., 2] = np.linspace(200, 40, width).astype(np.uint8)
    for t in range(frames):
        video[t, 16:32, 4 * t : 4 * t + 16] = (230, 20, 20)
    return video


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.mark.parametrize("frames", [1, 2, 29])
def test_video_round_trip(tmp_path: Path, frames: int) -> None:
    video = moving_square(frames)
    write_video(tmp_path / "a.mp4", video, fps=12)
    back = read_video(tmp_path / "a.mp4")
    assert back.shape == video.shape
    assert back.dtype == np.uint8
    assert psnr(video, back) > 30
    # Colours survive: a wrong matrix or range would shift flat areas by several levels.
    flat = np.full((3, 32, 32, 3), (200, 60, 20), np.uint8)
    write_video(tmp_path / "flat.mp4", flat, fps=12)
    assert np.abs(read_video(tmp_path / "flat.mp4").astype(int) - flat).max() <= 3


@pytest.mark.parametrize("shape", [(1, 48, 64), (9, 48, 64), (3, 17, 31)])
def test_lossless_frames_come_back_bit_by_bit(
    tmp_path: Path, rng: np.random.Generator, shape: tuple[int, int, int]
) -> None:
    video = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    write_lossless(tmp_path / "a.frames.mkv", video, fps=12)
    assert np.array_equal(read_video(tmp_path / "a.frames.mkv"), video)
    data = bytearray((tmp_path / "a.frames.mkv").read_bytes())
    data[len(data) // 2] ^= 0x10
    (tmp_path / "b.mkv").write_bytes(bytes(data))
    with pytest.raises(FileError, match=r"b\.mkv"):  # its slices carry checksums
        read_video(tmp_path / "b.mkv")


def test_frames_keep_their_order_and_number(tmp_path: Path) -> None:
    levels = np.arange(0, 250, 10, dtype=np.uint8)
    write_video(tmp_path / "a.mp4", np.tile(levels[:, None, None, None], (1, 32, 32, 3)), fps=24)
    means = read_video(tmp_path / "a.mp4").mean((1, 2, 3))
    assert np.abs(means - levels).max() < 4
    assert len(read_video(tmp_path / "a.mp4", max_frames=7)) == 7


def test_what_players_need(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_square(13), fps=24)
    meta = next(imageio_ffmpeg.read_frames(str(tmp_path / "a.mp4")))
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 24
    assert meta["size"] == (64, 48)
    assert "audio_codec" not in meta
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # plays before it is loaded


def test_same_frames_same_bytes(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, moving_square(), fps=12)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-y.mp4", "http:x.mp4", "50%d [a] 猫.mp4"):
        write_video(name, moving_square(2), fps=12)
        assert len(read_video(name)) == 2


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 32, 32, 3), np.float32),
        np.zeros((4, 32, 32), np.uint8),
        np.zeros((4, 3, 32, 32), np.uint8),
        np.zeros((0, 32, 32, 3), np.uint8),
        np.zeros((4, 31, 32, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        write_video(tmp_path / "a.mp4", frames, fps=12)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_impossible_speed(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ShapeError, match="frames per second"):
        write_video(tmp_path / "a.mp4", moving_square(2), fps=fps)


def test_damaged_videos_are_refused_by_name(tmp_path: Path) -> None:
    good = tmp_path / "good.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
    write_video(good, noise, fps=12)
    whole = good.read_bytes()
    bad = tmp_path / "bad.mp4"
    for size in (0, 10, 500, len(whole) // 2, len(whole) - 2000):
        bad.write_bytes(whole[:size])
        with pytest.raises(FileError, match=r"bad\.mp4"):
            read_video(bad)
    bad.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n")
    with pytest.raises(FileError, match=r"bad\.mp4"):
        read_video(bad)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.mp4: no such file"):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(FileError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")


def test_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, moving_square(2), fps=12)
    before = path.read_bytes()
    with pytest.raises(ShapeError):
        write_video(path, moving_square(2, height=33), fps=12)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError):
        write_video(tmp_path / "file" / "a.mp4", moving_square(2), fps=12)


def test_image_round_trip_is_exact(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8)
    write_image(tmp_path / "a.png", image)
    assert np.array_equal(read_image(tmp_path / "a.png"), image)
    whole = (tmp_path / "a.png").read_bytes()
    for size in (0, 20, len(whole) // 2):
        (tmp_path / "bad.png").write_bytes(whole[:size])
        with pytest.raises(FileError, match=r"bad\.png"):
            read_image(tmp_path / "bad.png")


def test_grid_places_images_row_by_row() -> None:
    images = [np.full((5, 7, 3), value, np.uint8) for value in (10, 20, 30, 40, 50)]
    sheet = grid(images, columns=3, gap=2)
    assert sheet.shape == (12, 26, 3)  # 2 x 5 + 2, and 3 x 7 + 2 x 2 made even
    for index, value in enumerate((10, 20, 30, 40, 50, 0)):
        top, left = index // 3 * 7, index % 3 * 9
        assert (sheet[top : top + 5, left : left + 7] == value).all()
    assert (sheet[5:7] == 0).all()
    assert grid(images, gap=0).shape == (10, 22, 3)
    with pytest.raises(ShapeError, match="one shape"):
        grid([*images, np.zeros((6, 7, 3), np.uint8)])
    with pytest.raises(ShapeError, match="none"):
        grid([])


def test_write_grid(tmp_path: Path) -> None:
    videos = [moving_square(), moving_square()]
    write_grid(tmp_path / "a.mp4", videos, fps=12)
    assert read_video(tmp_path / "a.mp4").shape == (9, 48, 130, 3)
    write_grid(tmp_path / "a.png", videos, fps=12)
    assert read_image(tmp_path / "a.png").shape == (48, 130, 3)
    with pytest.raises(ShapeError, match="one length"):
        write_grid(tmp_path / "b.mp4", [moving_square(3), moving_square(4)], fps=12)
    with pytest.raises(ShapeError, match="none"):
        write_grid(tmp_path / "b.mp4", [], fps=12)
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "a.png"]


def test_an_overview_of_large_videos_is_shrunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("osp_opt.base.video.MAX_SHEET_PIXELS", 48 * 64)
    videos = [np.full((2, 48, 64, 3), level, np.uint8) for level in (0, 80, 160, 240)]
    write_grid(tmp_path / "a.png", videos, fps=12)
    sheet = read_image(tmp_path / "a.png")
    assert sheet.shape == (50, 66, 3)
    assert sheet[::26, ::34, 0].tolist() == [[0, 80], [160, 240]]


def test_a_grid_of_files_is_that_of_their_frames(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for k, path in enumerate(paths):
        write_video(path, np.roll(moving_square(5), 8 * k, axis=2), fps=12)
    write_grid(tmp_path / "files.mp4", [video_frames(path) for path in paths], fps=12)
    write_grid(tmp_path / "frames.mp4", [read_video(path) for path in paths], fps=12)
    assert (tmp_path / "files.mp4").read_bytes() == (tmp_path / "frames.mp4").read_bytes()
