"""The reference tool's documented workflow, line by line, as a user types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import Server
from official import LINES, PROMPTS, STEPS, Walk, write_checkpoint

STARTED = "cache"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("official"))


def test_five_lines_and_again(model: Path, tmp_path: Path, free_port: int, server: Server) -> None:
    """In an empty folder; a second time nothing is sampled again.

    One line, which samples and searches, is started as a user starts it.
    """
    walk = Walk(tmp_path / "walk", model, free_port)
    told = {
        name: walk.run(name) if name == STARTED else walk.run_forked(server, name) for name in LINES
    }
    walk.assert_promised()
    assert "calibrated on" in told["steps"], "prompts of line 1 decide with other seeds"
    assert "no calibration" in told["cache"], "says that it makes one, and what that costs"
    assert f"{STEPS} steps with the original model" not in told["steps"]
    assert f"--steps {STEPS} is not used" in told["faster videos"]
    before = walk.files()
    again = {name: walk.run_forked(server, name) for name in LINES}
    walk.assert_promised()
    videos = [name for name in before if name.startswith("sample_video_test/0")]
    assert len(videos) == 3 * len(PROMPTS)
    after = walk.files()
    assert {name: after[name] for name in videos} == {name: before[name] for name in videos}
    assert "5 of 5 videos are there already" in again["videos"]
    assert {name: data for name, (_, data) in after.items()} == {
        name: data for name, (_, data) in before.items()
    }
