"""The last line of `make demo`: which video, and how much faster than the original."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

from osp_opt.generate.manifest import open_take


def summary(baseline: Path, candidate: Path) -> str:
    """One line from two folders of `sample` of the same prompts and seeds."""
    takes = open_take(baseline, "baseline"), open_take(candidate, "candidate")
    before, after = (
        median(video.seconds for video in take.videos if video.seconds is not None)
        for take in takes
    )
    return (
        f"demo: {takes[1].videos[0].path} denoised {before / after:.2f}x faster "
        f"than the original ({after:.2f} s instead of {before:.2f} s)"
    )


if __name__ == "__main__":
    print(summary(Path(sys.argv[1]), Path(sys.argv[2])))
