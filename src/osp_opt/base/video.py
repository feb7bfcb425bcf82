"""Videos and images as files: mp4 through imageio-ffmpeg's ffmpeg, png through Pillow.

Arrays are uint8 RGB: a video is [t h w c], an image [h w c], c = 3. Files are written whole or not
at all. No torch, though its CPU tensors are taken where arrays are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from einops import rearrange, reduce
from PIL import Image

from osp_opt.base.artifacts import atomic_path, open_for_reading
from osp_opt.base.errors import FileError, ShapeError
from osp_opt.base.ffmpeg import LOSSLESS, MP4, decode, encode

Frames: TypeAlias = npt.NDArray[np.uint8]
Film: TypeAlias = Iterable[Frames]
"""Frames [h w c] one after the other: a video [t h w c], or what `video_frames` reads."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_VIDEO_BYTES = 8 * 2**30  # decoded; a guard against files that unpack to more than memory holds
_BLACK = 0
MAX_SHEET_PIXELS = 5_000_000
"""Of an overview; larger ones are shrunk: x264 holds dozens of frames, few players show them."""


def write_video(path: str | Path, frames: npt.ArrayLike, fps: float) -> None:
    """Write uint8 frames [t h w c] as an h264 mp4 (yuv420p, tagged, no sound), ``fps`` a second.

    Raises ShapeError for other arrays or an odd height or width, FileError when the file cannot
    be written.
    """
    video = _checked(frames, ndim=4)
    _write_film(path, video.shape[1:3], video, fps)


def write_lossless(path: str | Path, frames: npt.ArrayLike, fps: float) -> None:
    """Write uint8 frames [t h w c] to a Matroska file, FFV1 in RGB: `read_video` returns them bit
    by bit. For measuring; most players and browsers do not show it. Raises as `write_video`.
    """
    video = _checked(frames, ndim=4)
    _encode(path, video.shape[1:3], video, fps, LOSSLESS)


def write_frames(path: Path, frames: Frames, fps: float) -> None:
    """Write uint8 frames [t h w c]: a png of one, an mp4 of more. Raises ShapeError, FileError."""
    if len(frames) == 1:
        write_image(path, frames[0])
    else:
        write_video(path, frames, fps)


def _write_film(path: str | Path, size: tuple[int, ...], film: Film, fps: float) -> None:
    height, width = size
    if height % 2 or width % 2:
        raise ShapeError(f"video {path}: {width}x{height} is odd, h264 needs even sizes; pad it")
    _encode(path, size, film, fps, MP4)


def _encode(
    path: str | Path, size: tuple[int, ...], film: Film, fps: float, encoding: Sequence[str]
) -> None:
    """Hand the frames to ffmpeg one by one, so that no copy of them all is made."""
    height, width = size
    if not (math.isfinite(fps) and fps > 0):
        raise ShapeError(f"video {path}: {fps} frames per second; give a number above 0")
    with atomic_path(path) as temporary:
        frames = (np.ascontiguousarray(frame).tobytes() for frame in film)
        failure = encode(temporary, (height, width), fps, encoding, frames)
        if failure is not None:
            raise FileError(f"video {path}: cannot be written ({failure})")


def read_video(path: str | Path, max_frames: int | None = None) -> Frames:
    """Read a video -> [t h w c], all frames or the first ``max_frames``, in order, as stored.

    Raises FileError when the file is missing, no video, damaged or larger than MAX_VIDEO_BYTES.
    """
    frames: list[Frames | None] = [*video_frames(path, max_frames)]
    first = frames[0]
    assert first is not None
    video = np.empty((len(frames), *first.shape), np.uint8)
    for index, frame in enumerate(frames):
        video[index] = frame
        frames[index] = None  # so that memory never holds the video twice
    return video


def read_frames(path: str | Path, max_frames: int | None = None) -> Frames:
    """Read a video, or an image as a video of one frame -> [t h w c]. Raises FileError."""
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        return read_image(path)[np.newaxis]
    return read_video(path, max_frames)


def video_frames(path: str | Path, max_frames: int | None = None) -> Iterator[Frames]:
    """The frames [h w c] of a video one by one, as `read_video` returns them all; at least one.

    Raises FileError as `read_video` does; that a file is damaged may show at its end only.
    """
    open_for_reading(path, "video").close()  # ffmpeg would wait for what is no file
    total = 0
    size = None
    for count, (width, height, data) in enumerate(decode(Path(path), max_frames), start=1):
        total += len(data)
        if total > MAX_VIDEO_BYTES:
            raise FileError(f"video {path}: more than {MAX_VIDEO_BYTES:,} bytes of frames")
        size = size or (width, height)
        if (width, height) != size:
            raise FileError(f"video {path}: its frame size changes at frame {count}")
        yield rearrange(np.frombuffer(data, np.uint8), "(h w c) -> h w c", h=height, w=width)


def frame_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a video or an image. Raises FileError."""
    _, height, width, _ = read_frames(path, max_frames=1).shape
    return width, height


def write_image(path: str | Path, image: npt.ArrayLike) -> None:
    """Write a uint8 image [h w c] as png. Raises ShapeError for other arrays, FileError."""
    picture = Image.fromarray(_checked(image, ndim=3))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def read_image(path: str | Path) -> Frames:
    """Read an image file -> RGB [h w c]. Raises FileError."""
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except FileNotFoundError as error:
        raise FileError(f"image {path}: no such file; check the path") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FileError(f"image {path}: cannot be read ({error})") from error


def grid(images: Sequence[npt.ArrayLike], columns: int | None = None, gap: int = 2) -> Frames:
    """Tile images [h w c] of one shape, row by row -> [h w c] with even h and w.

    ``columns`` defaults to about as many as rows; ``gap`` is the black seam in pixels. Raises
    ShapeError when there are no images or their shapes differ.
    """
    tiles = [_checked(image, ndim=3) for image in images]
    shapes = sorted({tile.shape for tile in tiles})
    if len(shapes) != 1:
        raise ShapeError(f"a grid needs pictures of one shape, got {shapes or 'none'}")
    height, width, _ = tiles[0].shape
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    tall, wide = (n * (side + gap) - gap for n, side in ((rows, height), (columns, width)))
    sheet = np.full((tall + tall % 2, wide + wide % 2, 3), _BLACK, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def write_grid(path: str | Path, videos: Sequence[Film], fps: float) -> None:
    """Write several videos side by side: an mp4, or the first frames if ``path`` ends in .png.

    Memory holds one frame of each; beyond MAX_SHEET_PIXELS all are shrunk by a whole number.
    Raises ShapeError when their shapes differ, FileError.
    """
    sheets = (
        grid([_shrunk(frame, len(videos)) for frame in frames]) for frames in _in_step(path, videos)
    )
    first = next(sheets, None)
    if first is None:
        raise ShapeError(f"{path}: a grid needs videos, got none")
    if Path(path).suffix.lower() == ".png":
        write_image(path, first)
    else:
        _write_film(path, first.shape[:2], itertools.chain((first,), sheets), fps)


def _shrunk(frame: Frames, count: int) -> Frames:
    """One of `count` tiles, at a size at which they make a sheet together."""
    height, width, _ = frame.shape
    step = math.ceil(math.sqrt(count * height * width / MAX_SHEET_PIXELS))
    if step == 1:
        return frame
    cut = frame[: height // step * step, : width // step * step]
    return reduce(cut.astype(np.float32), "(h i) (w j) c -> h w c", "mean", i=step, j=step).astype(
        np.uint8
    )


def _in_step(path: str | Path, videos: Sequence[Film]) -> Iterator[tuple[Frames, ...]]:
    """The first frames of all, then the second ones, and so on."""
    try:
        yield from zip(*videos, strict=True)
    except ValueError as error:
        raise ShapeError(f"{path}: a grid needs videos of one length") from error


def _checked(array: npt.ArrayLike, ndim: int) -> Frames:
    frames = np.asarray(array)
    if frames.dtype != np.uint8 or frames.ndim != ndim or frames.shape[-1] != 3 or not frames.size:
        wanted = "t h w 3" if ndim == 4 else "h w 3"
        raise ShapeError(f"expected uint8 frames [{wanted}], got {frames.dtype} {frames.shape}")
    return np.ascontiguousarray(frames)
