"""Memory at real sizes, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

import memory_of
import pytest
from launching import run_ranks

GIB = 2**30


@pytest.mark.parametrize(
    ("shape", "what", "limit"),
    [
        ((29, 480, 640), "compare", 1 * GIB),
        ((29, 480, 640), "grid", 1 * GIB),
        ((25, 720, 1280), "psnr", GIB // 2),  # for 93 frames as for 25: frame by frame
        ((93, 720, 1280), "decode", 2 * GIB),
    ],
)
def test_memory_beyond_the_frames(
    shape: tuple[int, int, int], what: str, limit: int, tmp_path: Path
) -> None:
    told = tmp_path / "bytes"
    run_ranks(memory_of.main, 1, shape, what, told, logs=tmp_path)
    assert 0 < int(told.read_text()) < limit
