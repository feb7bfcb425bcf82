"""The reference tool's documented workflow on two processes, from `calibrate` on.

The first line through torch.distributed.run, as for a user; the others' processes are forked.
"""

from __future__ import annotations

from pathlib import Path

from forked import Server
from official import LINES, Walk, write_checkpoint


def test_calibrate_makes_the_videos_on_two_processes_in_a_folder_with_a_space(
    tmp_path: Path, free_port: int, server: Server
) -> None:
    """Both searches find what line 1 recorded, wherever it was told to put it."""
    model = write_checkpoint(tmp_path / "model")
    walk = Walk(
        tmp_path / "walk",
        model,
        free_port,
        first="calibrate",
        processes=2,
        videos="my videos/",
    )
    first, *others = LINES
    walk.run(first)
    told = {name: walk.run_forked(server, name) for name in others}
    walk.assert_promised()
    assert "no calibration" not in told["cache"]
    assert str(walk.videos) in told["cache"]
    assert not (walk.folder / "osp-opt-work" / "calibration").exists()
