"""VBench as a subprocess: a real process of a stand-in package that writes VBench's format."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from osp_opt.base.errors import FileError, OptionError
from osp_opt.evaluate.pairs import VideoFile
from osp_opt.evaluate.vbench import vbench_scores

# The mean in [0, 1] and, as VBench does for imaging_quality, per cent per video.
STAND_IN = """
import argparse, json, os
parser = argparse.ArgumentParser()
for name in ("output_path", "videos_path", "mode", "prompt_file"):
    parser.add_argument("--" + name)
parser.add_argument("--dimension", nargs="+")
args = parser.parse_args()
assert args.mode == "custom_input"
prompts = json.load(open(args.prompt_file))
result = {}
for dimension in args.dimension:
    rows = []
    for name in sorted(os.listdir(args.videos_path), reverse=True):
        path = os.path.join(args.videos_path, name)
        size = os.path.getsize(path) / 100
        assert prompts[path].startswith("prompt"), prompts
        percent = dimension == "imaging_quality"
        rows.append({"video_path": path, "video_results": size * 100 if percent else size})
    result[dimension] = [0.5, rows]
if "broken" in args.dimension:
    raise SystemExit("CUDA is not available")
os.makedirs(args.output_path)
with open(os.path.join(args.output_path, "results_eval_results.json"), "w") as stream:
    json.dump(result, stream)
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A python for which `-m vbench.launch.evaluate` is the stand-in."""
    launch = tmp_path / "site" / "vbench" / "launch"
    launch.mkdir(parents=True)
    for folder in (launch, launch.parent):
        (folder / "__init__.py").write_text("")
    (launch / "evaluate.py").write_text(STAND_IN)
    script = tmp_path / "python"
    site, real = shlex.quote(str(tmp_path / "site")), shlex.quote(sys.executable)
    script.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {real} "$@"\n')
    script.chmod(0o755)
    return script


@pytest.fixture
def videos(tmp_path: Path) -> list[VideoFile]:
    found = []
    for number, size in enumerate((30, 70, 50)):
        path = tmp_path / f"prompt-{number}.mp4"
        path.write_bytes(bytes(size))
        found.append(VideoFile(path, f"prompt {number}" if number else None, 0))
    return found


def test_scores_come_back_in_order_and_in_shares(python: Path, videos: list[VideoFile]) -> None:
    for name in ("motion_smoothness", "imaging_quality"):
        assert np.allclose(vbench_scores(python, videos, name), [0.3, 0.7, 0.5])


def test_failures_say_why(python: Path, videos: list[VideoFile], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="CUDA is not available"):
        vbench_scores(python, videos, "broken")
    with pytest.raises(OptionError, match="no such file"):
        vbench_scores(tmp_path / "nothing", videos, "motion_smoothness")
    evaluate = tmp_path / "site" / "vbench" / "launch" / "evaluate.py"
    evaluate.write_text(STAND_IN.replace("size * 100 if percent else size", "None"))
    with pytest.raises(FileError, match="no score"):
        vbench_scores(python, videos, "motion_smoothness")
    evaluate.write_text(STAND_IN.replace("result = {}", "raise SystemExit(0)"))
    with pytest.raises(FileError, match="no results"):
        vbench_scores(python, videos, "motion_smoothness")
