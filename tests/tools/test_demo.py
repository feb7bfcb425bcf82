"""The last line of `make demo`."""

from __future__ import annotations

from pathlib import Path

from folders import clips, sampled

from tools.demo import summary


def test_the_last_line_names_the_video_and_the_speed_up(tmp_path: Path) -> None:
    sampled(tmp_path / "baseline", clips(), seconds=3.0)
    sampled(tmp_path / "faster", clips(), seconds=1.5)
    line = summary(tmp_path / "baseline", tmp_path / "faster")
    assert str(tmp_path / "faster" / "001.mp4") in line
    assert "2.00x faster than the original (1.53 s instead of 3.06 s)" in line
