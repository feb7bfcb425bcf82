"""Videos and images as files: mp4 through imageio-ffmpeg's ffmpeg, png through Pillow.

Arrays are uint8 RGB: a video is [t h w c], an image [h w c], c = 3. Files are written whole or not
at all. No torch, though its CPU tensors are taken where arrays are.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TypeAlias

import imageio_ffmpeg
import numpy as np
import numpy.typing as npt
from einops import rearrange
from PIL import Image

from osp_opt.base.artifacts import atomic_path
from osp_opt.base.errors import FileError, ShapeError

Frames: TypeAlias = npt.NDArray[np.uint8]

H264_CRF = 14
"""Constant rate factor of libx264: 0 is lossless, 23 its default, below 18 visually lossless."""

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_VIDEO_BYTES = 8 * 2**30  # decoded; a guard against files that unpack to more than memory holds
_PPM = b"P6"
_PPM_FIELDS = 4  # magic, width, height, largest value
_BLACK = 0
_DAMAGED_SLICE = b"CRC mismatch"


def write_video(path: str | Path, frames: npt.ArrayLike, fps: float) -> None:
    """Write uint8 frames [t h w c] as an h264 mp4 (yuv420p, BT.709, no sound), ``fps`` a second.

    Raises ShapeError for other arrays or an odd height or width, FileError when the file cannot
    be written.
    """
    video = _checked(frames, ndim=4)
    _, height, width, _ = video.shape
    if height % 2 or width % 2:
        raise ShapeError(f"video {path}: {width}x{height} is odd, h264 needs even sizes; pad it")
    encoding = (
        # Untagged, players guess the colour matrix from the size, and differ.
        *("-vf", "scale=out_color_matrix=bt709:out_range=tv", "-colorspace", "bt709"),
        *("-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"),
        *("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(H264_CRF)),
        *("-movflags", "+faststart", "-f", "mp4"),
    )
    _encode(path, video, fps, encoding)


def write_lossless(path: str | Path, frames: npt.ArrayLike, fps: float) -> None:
    """Write uint8 frames [t h w c] to a Matroska file, FFV1 in RGB: `read_video` returns them bit
    by bit. For measuring; most players and browsers do not show it. Raises as `write_video`.
    """
    encoding = ("-c:v", "ffv1", "-level", "3", "-slicecrc", "1", "-pix_fmt", "bgr0")
    _encode(path, _checked(frames, ndim=4), fps, (*encoding, "-f", "matroska"))


def _encode(path: str | Path, video: Frames, fps: float, encoding: Sequence[str]) -> None:
    _, height, width, _ = video.shape
    if not (math.isfinite(fps) and fps > 0):
        raise ShapeError(f"video {path}: {fps} frames per second; give a number above 0")
    with atomic_path(path) as temporary:
        command = [
            *_ffmpeg(),
            *("-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"),
            *("-r", f"{fps:g}", "-i", "pipe:0", "-an", *encoding, _argument(temporary)),
        ]
        done = subprocess.run(command, input=video.tobytes(), capture_output=True, check=False)
        if done.returncode != 0:
            reason = _last_line(done.stderr) or f"ffmpeg ended with {done.returncode}"
            raise FileError(f"video {path}: cannot be written ({reason})")


def read_video(path: str | Path, max_frames: int | None = None) -> Frames:
    """Read a video -> [t h w c], all frames or the first ``max_frames``, in order, as stored.

    Raises FileError when the file is missing, no video, damaged or larger than MAX_VIDEO_BYTES.
    """
    source = Path(path)
    if not source.is_file():
        raise FileError(f"video {path}: no such file; check the path")
    command = [
        *_ffmpeg(),
        # Local files only: a playlist in disguise shall not fetch anything. -xerror and explode
        # make a truncated or damaged file an error instead of a shorter or smeared video.
        *("-protocol_whitelist", "file,pipe", "-xerror", "-err_detect", "explode"),
        *("-i", _argument(source), "-map", "0:v:0"),
        *(() if max_frames is None else ("-frames:v", str(max_frames))),
        # PPM frames state their size; passthrough neither drops nor repeats frames.
        *("-fps_mode", "passthrough", "-c:v", "ppm", "-f", "image2pipe", "pipe:1"),
    ]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
        )
        with process:
            assert process.stdout is not None
            try:
                frames = _read_ppm_frames(process.stdout, path)
            finally:
                process.stdout.close()  # ends ffmpeg, should it still want to write
        log.seek(0)
        said = log.read()
        # ffmpeg paints over a damaged slice of a lossless video and ends well.
        if process.returncode != 0 or not frames or _DAMAGED_SLICE in said:
            reason = _last_line(said) or "no frames in it"
            raise FileError(f"video {path}: cannot be read ({reason})")
    return np.stack(frames)


def frame_size(path: str | Path) -> tuple[int, int]:
    """Width and height of a video or an image. Raises FileError."""
    if Path(path).suffix.lower() in IMAGE_SUFFIXES:
        height, width, _ = read_image(path).shape
    else:
        _, height, width, _ = read_video(path, max_frames=1).shape
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


def grid(videos: Sequence[npt.ArrayLike], columns: int | None = None, gap: int = 2) -> Frames:
    """Tile videos of one shape, row by row -> [t h w c] with even h and w.

    ``columns`` defaults to about as many as rows; ``gap`` is the black seam in pixels. Raises
    ShapeError when there are no videos or their shapes differ.
    """
    tiles = _same_shape(videos)
    columns = columns or math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    missing = rows * columns - len(tiles)
    padded = np.pad(tiles, ((0, missing), (0, 0), (0, gap), (0, gap), (0, 0)))
    sheet = rearrange(padded, "(r n) t h w c -> t (r h) (n w) c", r=rows)[:, : -gap or None]
    return _even(sheet[:, :, : -gap or None])


def film_strips(videos: Sequence[npt.ArrayLike], frames: int = 8, gap: int = 2) -> Frames:
    """One row per video, ``frames`` of its frames from first to last evenly spaced -> [h w c].

    Raises ShapeError when there are no videos or their shapes differ.
    """
    tiles = _same_shape(videos)
    count = min(frames, tiles.shape[1])
    picked = np.linspace(0, tiles.shape[1] - 1, count).round().astype(int)
    stills = rearrange(tiles[:, picked], "n t h w c -> (n t) 1 h w c")
    return rearrange(grid(list(stills), columns=count, gap=gap), "1 h w c -> h w c")


def write_grid(
    path: str | Path, videos: Sequence[npt.ArrayLike], fps: float, columns: int | None = None
) -> None:
    """Write several videos side by side: an mp4, or the first frames if ``path`` ends in .png.

    Raises ShapeError when their shapes differ, FileError.
    """
    sheet = grid(videos, columns)
    if Path(path).suffix.lower() == ".png":
        write_image(path, sheet[0])
    else:
        write_video(path, sheet, fps)


def _checked(array: npt.ArrayLike, ndim: int) -> Frames:
    frames = np.asarray(array)
    if frames.dtype != np.uint8 or frames.ndim != ndim or frames.shape[-1] != 3 or not frames.size:
        wanted = "t h w 3" if ndim == 4 else "h w 3"
        raise ShapeError(f"expected uint8 frames [{wanted}], got {frames.dtype} {frames.shape}")
    return np.ascontiguousarray(frames)


def _same_shape(videos: Sequence[npt.ArrayLike]) -> Frames:
    checked = [_checked(video, ndim=4) for video in videos]
    shapes = sorted({video.shape for video in checked})
    if len(shapes) != 1:
        raise ShapeError(f"a grid needs videos of one shape, got {shapes or 'none'}")
    return np.stack(checked)


def _even(video: Frames) -> Frames:
    _, height, width, _ = video.shape
    return np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), constant_values=_BLACK)


def _read_ppm_frames(stream: IO[bytes], path: str | Path) -> list[Frames]:
    frames: list[Frames] = []
    total = 0
    while header := _ppm_header(stream):
        width, height = header
        total += height * width * 3
        if total > MAX_VIDEO_BYTES:
            raise FileError(f"video {path}: more than {MAX_VIDEO_BYTES:,} bytes of frames")
        data = stream.read(height * width * 3)
        if len(data) != height * width * 3:
            break  # ffmpeg died; its exit code tells
        frame = np.frombuffer(data, np.uint8)
        frames.append(rearrange(frame, "(h w c) -> h w c", h=height, w=width))
        if frames[0].shape != frames[-1].shape:
            raise FileError(f"video {path}: its frame size changes at frame {len(frames)}")
    return frames


def _ppm_header(stream: IO[bytes]) -> tuple[int, int] | None:
    """Width and height of the next frame; None at the end. "P6 width height 255", then pixels."""
    fields: list[bytes] = []
    word = b""
    while len(fields) < _PPM_FIELDS:
        byte = stream.read(1)
        if not byte:
            return None
        if not byte.isspace():
            word += byte
        elif word:
            fields.append(word)
            word = b""
    return int(fields[1]), int(fields[2])


def _ffmpeg() -> list[str]:
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-v", "error"]


def _argument(path: Path) -> str:
    """Absolute and with its protocol, so that no file name is taken for an option or a protocol."""
    return f"file:{path.absolute()}"


def _last_line(log: bytes) -> str:
    lines = log.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
