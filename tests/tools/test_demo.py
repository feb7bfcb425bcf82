"""The last lines of `make demo`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import clips, noisy, sampled

from osp_opt.cli.app import main
from osp_opt.quality.intervals import Interval
from osp_opt.quality.yardstick import Yardstick
from tools.demo import summary


def test_the_last_lines_say_what_was_gained_and_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = clips()
    sampled(tmp_path / "baseline", made, seconds=3.0)
    sampled(tmp_path / "samples", [noisy(clip, 5) for clip in made], seconds=1.5)
    sides = ["--reference", str(tmp_path / "baseline"), "--candidate", str(tmp_path / "samples")]
    assert main(["evaluate", *sides, "--workdir", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"] == 3, "the result, and nothing else"
    picture, gained, lost = summary(tmp_path).splitlines()
    assert str(tmp_path / "side-by-side.webp") in picture
    assert gained == "gained: denoising 2.00, 2.00, 2.00 times (3 values) faster, 3 videos"
    assert "to the original (small differences)" in lost
    (tmp_path / "calibration").mkdir()
    Yardstick(100, 800, Interval(47.0, 45.0, 49.0, 4)).save(tmp_path / "calibration")
    assert "more than 100 steps lose themselves" in summary(tmp_path)
