"""The ffmpeg that writes and reads our videos: its commands, and whether it can do what they ask.

It is the one of the package imageio-ffmpeg, or what the variable IMAGEIO_FFMPEG_EXE names. No
torch.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

import imageio_ffmpeg

from osp_opt.base.errors import FfmpegError, FileError

__all__ = ["LOSSLESS", "MP4", "check_ffmpeg", "decode", "encode"]

H264_CRF = 14
"""Constant rate factor of libx264: 0 is lossless, 23 its default, below 18 visually lossless."""

OLDEST = (5, 1)  # the first version with -fps_mode
MP4 = (
    # Primaries and transfer of BT.709, which are sRGB's; the matrix of BT.601, because browsers
    # without a GPU convert BT.709's with 8-bit constants, which shifts blue by up to 11 levels.
    # Everything is tagged, in the stream itself too: untagged, players guess, and differ.
    *("-vf", "scale=out_color_matrix=bt601:out_range=tv", "-colorspace", "smpte170m"),
    *("-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv", "-bsf:v"),
    "h264_metadata=colour_primaries=1:transfer_characteristics=1:matrix_coefficients=6",
    *("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", str(H264_CRF)),
    *("-movflags", "+faststart", "-f", "mp4"),
)
"""h264 for all players."""
LOSSLESS = (
    *("-c:v", "ffv1", "-level", "3", "-slicecrc", "1", "-pix_fmt", "bgr0"),
    # Matroska files carry random identifiers else.
    *("-fflags", "+bitexact", "-flags:v", "+bitexact", "-f", "matroska"),
)
"""FFV1 in RGB, every slice with a checksum; the same frames make the same bytes."""

_CHECK_S = 60.0
_SIDE = 16  # pixels of the frame that is tried
_PPM_FIELDS = 4  # "P6", width, height, largest value
_PPM_LARGEST = b"255"
_ADDRESS = re.compile(r"^\[[^\]]* @ 0x[0-9a-f]+\] ")  # what part of ffmpeg speaks, and where it is
_DAMAGED_SLICE = b"CRC mismatch"


def encode(
    path: Path,
    size: tuple[int, int],
    fps: float,
    encoding: Sequence[str],
    frames: Iterable[bytes],
) -> str | None:
    """Encode RGB frames (height, width), 3 bytes a pixel, handed to ffmpeg one by one, into a file.

    Returns what ffmpeg said when it failed. Raises FfmpegError when it cannot be started.
    """
    height, width = size
    command = [
        *("-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"),
        *("-r", f"{fps:g}", "-i", "pipe:0", "-an", *encoding, _argument(path)),
    ]
    with tempfile.TemporaryFile() as log, _start(command, log, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # ffmpeg died; its exit code tells
                for frame in frames:
                    process.stdin.write(frame)
        except BaseException:
            process.kill()
            raise
        with suppress(BrokenPipeError):
            process.stdin.close()
        return _failure(process, log)


def decode(path: Path, max_frames: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """Width, height and RGB bytes of a video's frames, one by one, as stored.

    Pixels of any format are converted as ffmpeg does it. Raises FileError naming `path` when the
    video is no video, damaged (which may show at its end only) or has no frame.
    """
    command = [
        # Local files only: a playlist in disguise shall not fetch anything. -xerror and explode
        # make a truncated or damaged file an error instead of a shorter or smeared video.
        *("-protocol_whitelist", "file,pipe", "-xerror", "-err_detect", "explode"),
        # Each thread of a decoder holds frames of its own; an overview reads many files at once.
        *("-threads", "1", "-i", _argument(path), "-map", "0:v:0"),
        *(() if max_frames is None else ("-frames:v", str(max_frames))),
        # PPM frames state their size; passthrough neither drops nor repeats frames.
        *("-fps_mode", "passthrough", "-c:v", "ppm", "-pix_fmt", "rgb24", "-f", "image2pipe"),
        "pipe:1",
    ]
    with tempfile.TemporaryFile() as log:
        with _start(command, log, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            count = 0
            try:
                for frame in _ppm_frames(process.stdout, path):
                    count += 1
                    yield frame
            finally:
                process.stdout.close()  # ends ffmpeg, should it still want to write
        reason = _failure(process, log) or (None if count else "no frames in it")
    if reason is not None:
        raise FileError(f"video {path}: cannot be read ({reason})")


def check_ffmpeg() -> str:
    """Write and read a frame with the very commands of later; returns the version.

    A process tries each ffmpeg until it has worked once. Raises FfmpegError with what is wrong and
    what to do.
    """
    return _try(_executable())


@cache
def _try(executable: str) -> str:
    """What :func:`check_ffmpeg` does, for the one that is in use now."""
    rows = [bytes((8 * row, 255 - 8 * row, 128)) * _SIDE for row in range(_SIDE)]
    frame = b"".join(rows)
    with tempfile.TemporaryDirectory(prefix="osp-opt-ffmpeg-") as folder:
        for name, encoding in (("frame.mp4", MP4), ("frame.mkv", LOSSLESS)):
            path = Path(folder) / name
            said = encode(path, (_SIDE, _SIDE), 12, encoding, itertools.repeat(frame, 2))
            if said is not None:
                raise _unable(f"cannot write {path.suffix} videos", said)
            try:
                back = [data for _, _, data in decode(path)]
            except FileError as error:
                raise _unable(f"cannot read {path.suffix} videos", str(error)) from error
            if len(back) != 2 or (encoding is LOSSLESS and back != [frame, frame]):
                raise _unable(f"returns other frames than it was given as {path.suffix}", "")
    return _version() or "of unknown version"


def _executable() -> str:
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except (RuntimeError, OSError) as error:
        raise FfmpegError(
            "no ffmpeg to write and read videos with; pip install imageio-ffmpeg, or name one in "
            "IMAGEIO_FFMPEG_EXE"
        ) from error


def _start(
    arguments: Sequence[str],
    log: IO[bytes],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    executable = _executable()
    command = [executable, "-hide_banner", "-nostdin", "-v", "error", *arguments]
    try:
        return subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=log)
    except OSError as error:
        raise FfmpegError(
            f"ffmpeg {executable}: cannot be started ({error.strerror}); pip install --force-"
            "reinstall imageio-ffmpeg, or name another in IMAGEIO_FFMPEG_EXE"
        ) from error


def _failure(process: subprocess.Popen[bytes], log: IO[bytes]) -> str | None:
    """Why it failed, in its own last line; None when it did not."""
    code = process.wait()
    log.seek(0)
    said = log.read()
    # ffmpeg paints over a damaged slice of a lossless video and ends well.
    if code == 0 and _DAMAGED_SLICE not in said:
        return None
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return _ADDRESS.sub("", lines[-1]).strip() if lines else f"ffmpeg ended with {code}"


def _unable(what: str, said: str) -> FfmpegError:
    """Why this ffmpeg cannot do what it has to, as far as can be told."""
    executable = _executable()
    version = _version()
    found = re.match(r"n?(\d+)\.(\d+)", version or "")
    if version is None:
        what = "is no ffmpeg"
    elif found is not None and tuple(map(int, found.groups())) < OLDEST:
        what = f"is version {version}, too old; {OLDEST[0]}.{OLDEST[1]} or newer is needed"
    elif "libx264" in said:
        what = "was built without libx264, which writes the mp4s"
    elif said:
        what = f"{what} ({said})"
    return FfmpegError(
        f"ffmpeg {executable}: {what}; pip install -U imageio-ffmpeg and unset "
        "IMAGEIO_FFMPEG_EXE, or name another there"
    )


def _version() -> str | None:
    """What ``ffmpeg -version`` says; None when that is not ffmpeg's."""
    command = [_executable(), "-version"]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_CHECK_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.match(r"ffmpeg version (\S+)", done.stdout.decode("utf-8", "replace"))
    return None if found is None else found[1]


def _ppm_frames(stream: IO[bytes], path: Path) -> Iterator[tuple[int, int, bytes]]:
    while header := _ppm_header(stream, path):
        width, height = header
        data = stream.read(height * width * 3)
        if len(data) != height * width * 3:
            return  # ffmpeg died; its exit code tells
        yield width, height, data


def _ppm_header(stream: IO[bytes], path: Path) -> tuple[int, int] | None:
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
    if fields[0] != b"P6" or fields[3] != _PPM_LARGEST:
        raise FileError(f"video {path}: cannot be read (frames of another kind: {fields})")
    return int(fields[1]), int(fields[2])


def _argument(path: Path) -> str:
    """Absolute and with its protocol, so that no file name is taken for an option or a protocol."""
    return f"file:{path.absolute()}"
