"""ColorVideoVDP in another Python: a real process with a stand-in package of its interface."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import clips, noisy, sampled
from test_evaluate import evaluated

from osp_opt.base.errors import OptionError
from osp_opt.evaluate.cvvdp import color_video_vdp

# JOD as the share of equal values, so that a test can tell which videos came.
STAND_IN = """
print("a banner on stdout")
class cvvdp:
    def __init__(self, display_name):
        assert display_name == "standard_fhd"
    def predict(self, test, reference, dim_order, frames_per_second):
        print("progress")
        assert dim_order == "FHWC"[-test.ndim:], dim_order
        if frames_per_second == 13:
            raise ValueError("too odd a rate")
        return 10 * (test == reference).mean() - frames_per_second, {}
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A python that has the stand-in."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "pycvvdp.py").write_text(STAND_IN)
    script = tmp_path / "python"
    site, real = shlex.quote(str(tmp_path / "site")), shlex.quote(sys.executable)
    script.write_text(f'#!/bin/sh\nPYTHONPATH={site} exec {real} "$@"\n')
    script.chmod(0o755)
    return script


def test_the_frames_themselves_are_scored(python: Path, rng: np.random.Generator) -> None:
    video = rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    other = video.copy()
    other[:, :4] ^= 1
    with color_video_vdp(python) as score:
        assert score(video, video, 12) == -2
        assert score(other, video, 24) == pytest.approx(7.5 - 24)
        assert score(video[:1], video[:1], 12) == -2
        with pytest.raises(OptionError, match=r"python: ColorVideoVDP failed .*too odd a rate"):
            score(video, video, 13)


def test_what_cannot_score_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(OptionError, match=r"none: no such file"),
        color_video_vdp(tmp_path / "none"),
    ):
        pass
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    with (
        color_video_vdp(Path(sys.executable)) as score,
        pytest.raises(OptionError, match="No module named 'pycvvdp'"),
    ):
        score(frames, frames, 12)


def test_evaluate_shows_jod_with_its_interval(tmp_path: Path, python: Path) -> None:
    made = clips()
    sampled(tmp_path / "a", made, fps=1)
    sampled(tmp_path / "b", [noisy(video, 5, seed) for seed, video in enumerate(made)], fps=1)
    found = evaluated(tmp_path, "--cvvdp-python", str(python))
    jod = found["metrics"]["jod"]["candidate"]
    scores = [video["jod"] for video in found["videos"]]
    assert jod["estimate"] == pytest.approx(np.mean(scores))
    assert jod["low"] < jod["estimate"] < jod["high"]
    assert found["metrics"]["jod"]["worst"] == min(scores)
