"""The end of `make demo`: what was made, how much faster, and what was lost.

    python -m tools.demo FOLDER

FOLDER is the demo's working folder, after `osp-opt evaluate`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from osp_opt.base.artifacts import read_json
from osp_opt.quality.intervals import Interval
from osp_opt.quality.loss import visibility
from osp_opt.quality.yardstick import Yardstick

PICTURE = "side-by-side.webp"


def summary(folder: Path) -> str:
    """Three lines: the picture, what was gained, what was lost and how much that is."""
    found = read_json(folder / "evaluate" / "evaluation.json", "evaluation", max_bytes=2**28)
    near = Interval.from_json(found["metrics"]["psnr"]["candidate"])
    faster = Interval.from_json(found["speedup"])
    yardstick = Yardstick.load(folder / "calibration")
    gained = f"gained: denoising {faster.text(digits=2, unit=' times')} faster"
    lost = f"lost: {near.text(digits=1, unit=' dB')} to the original ({visibility(near.estimate)})"
    return "\n".join(
        [
            f"demo: {folder / PICTURE} shows both, side by side; open it in a browser",
            f"{gained}, {found['pairs']} videos",
            lost if yardstick is None else f"{lost}; {yardstick.line(near)}",
        ]
    )


if __name__ == "__main__":
    print(summary(Path(sys.argv[1])))
