"""Where a checkpoint's folders have what (no torch)."""

from __future__ import annotations

from pathlib import Path

from osp_opt.base.errors import CheckpointError

__all__ = ["transformer_in"]


def transformer_in(folder: Path) -> Path:
    """The folder with a transformer's config.json: this one, or its folder `transformer`.

    Raises CheckpointError, naming the folders that could be meant.
    """
    if (folder / "config.json").is_file():
        return folder
    inside = sorted(file.parent.name for file in folder.glob("*/config.json"))
    if "transformer" in inside:
        return folder / "transformer"
    raise CheckpointError(
        f"--model-path {folder}: no config.json in it; give a transformer's folder"
        + (f", or choose one with --version: {', '.join(inside)}" if inside else "")
    )
