"""The last line of `make demo`: which video, and how much faster than the original."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import median

from osp_opt.base.artifacts import read_json


def summary(baseline: Path, candidate: Path) -> str:
    """One line from the manifests of two `sample` folders of the same prompts and seeds."""
    before, after = (
        [
            video["denoising_seconds"]
            for video in read_json(folder / "manifest.json", "manifest")["videos"]
        ]
        for folder in (baseline, candidate)
    )
    video = read_json(candidate / "manifest.json", "manifest")["videos"][0]["file"]
    return (
        f"demo: {candidate / video} denoised {median(before) / median(after):.2f}x faster "
        f"than the original ({median(after):.2f} s instead of {median(before):.2f} s)"
    )


if __name__ == "__main__":
    print(summary(Path(sys.argv[1]), Path(sys.argv[2])))
