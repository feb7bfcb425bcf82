"""The videos of a folder without a manifest, as other tools leave one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from osp_opt.base.errors import FileError
from osp_opt.base.video import IMAGE_SUFFIXES, frame_size

__all__ = ["OVERVIEW", "RAW_FRAMES", "video_files"]

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".avi", ".gif")
RAW_FRAMES = ".frames.mkv"  # lossless copies beside videos, found through the manifest
OVERVIEW = "grid"  # of our own; other tools' overviews are known by their size
OVERVIEW_TILES = 3  # at fewer videos an overview is hardly larger than they are
SEAM = 16  # pixels at most between the tiles of an overview, and around it
PROBED = 64  # files whose size is looked at; of more, the largest: an overview is one of them


def video_files(folder: Path) -> list[Path]:
    """The videos of a folder, in the order in which people number them: no overviews, no raw
    copies, nothing hidden.
    """
    if not folder.is_dir():
        return []
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in VIDEO_SUFFIXES + IMAGE_SUFFIXES
        and path.is_file()
        and path.stem != OVERVIEW
        and not path.name.endswith(RAW_FRAMES)
        and not path.name.startswith(".")
    ]
    overview = _overview(files)
    return [path for path in sorted(files, key=_natural) if path not in overview]


def _natural(path: Path) -> list[tuple[int, str]]:
    """A sort key by which ``video_2`` comes before ``video_10``."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _overview(files: Sequence[Path]) -> set[Path]:
    """Files that show all the others side by side, as the reference tool adds one: by their size.

    All other files have one size, and tiles of that size, with seams, make the overview's.
    """
    if len(files) <= OVERVIEW_TILES:
        return set()
    likely = sorted(files, key=lambda path: path.stat().st_size)[-PROBED:]
    sizes = {}
    for path in likely:
        with suppress(FileError):  # whoever reads it will say so
            sizes[path] = frame_size(path)
    found = list(sizes.values())
    common = max(set(found), key=found.count, default=None)
    odd = [path for path, size in sizes.items() if size != common]
    if common is None or found.count(common) < max(len(found) - 2, 2):
        return set()
    return {path for path in odd if _made_of_tiles(sizes[path], common, len(files) - len(odd))}


def _made_of_tiles(size: tuple[int, int], tile: tuple[int, int], count: int) -> bool:
    """Whether a picture of `size` (width, height) is rows of `count` tiles with seams."""
    columns, rows = (whole // part for whole, part in zip(size, tile, strict=True))
    seams = [
        whole - number * part
        for whole, part, number in zip(size, tile, (columns, rows), strict=True)
    ]
    fits = all(0 <= seam <= SEAM * (n + 1) for seam, n in zip(seams, (columns, rows), strict=True))
    return fits and columns * rows > 1 and columns * rows >= count
