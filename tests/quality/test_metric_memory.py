"""Memory at real sizes, as the kernel counts it."""

from __future__ import annotations

import subprocess
import sys

import memory_of
import pytest

GIB = 2**30


@pytest.mark.parametrize(
    ("shape", "what", "limit"),
    [
        ((29, 480, 640), "compare", 1 * GIB),
        ((29, 480, 640), "grid", 1 * GIB),
        ((93, 720, 1280), "psnr", 2 * GIB),
        ((93, 720, 1280), "decode", 2 * GIB),
    ],
)
def test_memory_beyond_the_frames(shape: tuple[int, int, int], what: str, limit: int) -> None:
    command = [sys.executable, memory_of.__file__, *map(str, shape), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < limit
