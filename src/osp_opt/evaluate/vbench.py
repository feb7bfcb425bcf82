"""VBench scores, from VBench's own environment.

VBench pins old libraries, so it runs as a subprocess with the Python that the user names. It is
handed a folder of videos with plain names and their prompts ("custom input"), and writes one JSON
file: per dimension the mean and the score of every video.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import read_json
from osp_opt.base.errors import FileError, OptionError
from osp_opt.generate.manifest import VideoFile

__all__ = ["vbench_scores"]

_MODULE = "vbench.launch.evaluate"
_RESULTS = "*_eval_results.json"


def vbench_scores(python: Path, videos: Sequence[VideoFile], dimension: str) -> list[float]:
    """The score of every video in one dimension, in [0, 1], higher is better.

    Raises OptionError when `python` is not there or VBench fails, FileError when its result is
    not what VBench writes.
    """
    if not python.is_file():
        raise OptionError(f"--vbench-python {python}: no such file; give VBench's own python")
    with tempfile.TemporaryDirectory(prefix="osp-opt-vbench-") as name:
        place = Path(name).resolve()
        (place / "videos").mkdir()
        prompts = {}
        for number, video in enumerate(videos):
            copy = place / "videos" / f"{number:05d}{video.path.suffix.lower()}"
            shutil.copyfile(video.path, copy)
            prompts[str(copy)] = video.prompt or video.path.stem
        (place / "prompts.json").write_text(json.dumps(prompts))
        _run(python, place, dimension)
        results = sorted((place / "results").glob(_RESULTS))
        if not results:
            raise FileError("VBench: it wrote no results; run it once by hand")
        content = read_json(results[-1], "VBench result")
    return _of_dimension(content, dimension, len(videos))


def _run(python: Path, place: Path, dimension: str) -> None:
    command = [
        *(str(python), "-m", _MODULE, "--output_path", str(place / "results")),
        *("--videos_path", str(place / "videos"), "--mode", "custom_input"),
        *("--prompt_file", str(place / "prompts.json"), "--dimension", dimension),
    ]
    # Its own environment: what makes ours find its packages must not reach it.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
        raise OptionError(
            f"--vbench-python {python}: VBench ended with {done.returncode} ({lines[-1]:.200})"
        )


def _of_dimension(content: Any, dimension: str, count: int) -> list[float]:
    """Every video's score, in order, of `[mean, [{"video_path", "video_results"}, ...]]`."""
    entry = content.get(dimension) if isinstance(content, dict) else None
    rows = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
    if not isinstance(rows, list):
        raise FileError(f"VBench result: holds no scores of {dimension}; check its name")
    found: dict[int, float] = {}
    for row in rows:
        path, value = (
            (row.get("video_path"), row.get("video_results")) if isinstance(row, dict) else ("", 0)
        )
        stem = Path(str(path)).stem
        if not stem.isdecimal() or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise FileError(f"VBench result: {dimension} has an entry that is no score")
        found[int(stem)] = float(value)
    if sorted(found) != list(range(count)):
        raise FileError(f"VBench result: {dimension} scores {len(found)} of {count} videos")
    # imaging_quality is a share as a mean, and per cent per video.
    percent = max(found.values()) > 1.0
    return [found[number] / 100 if percent else found[number] for number in range(count)]
