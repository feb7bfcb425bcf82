"""The reference tool's documented lines, each killed on its way and run again.

Only in `make durability`: every run is a whole process tree.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from official import LINES, Walk, documented_line, start, write_checkpoint

WALKS = min(int(os.environ.get("OSP_OPT_KILLS", "0")), 3)
LONGEST_S = 8.0


@pytest.mark.parametrize("seed", range(WALKS))
def test_every_line_is_killed_and_goes_on(seed: int, tmp_path: Path, free_port: int) -> None:
    rng = random.Random(seed)
    model = write_checkpoint(tmp_path / "model")
    first = "sample" if seed % 2 == 0 else "calibrate"
    walk = Walk(tmp_path / "walk", model, free_port, first=first)
    for name in LINES:
        process = start(documented_line(name, **walk.known), walk.folder)
        time.sleep(LONGEST_S * rng.random())
        os.killpg(process.pid, 9)
        process.communicate()
        walk.run(name)
    walk.assert_promised()
