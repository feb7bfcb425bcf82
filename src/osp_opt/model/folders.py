"""Where a checkpoint's folders have what (no torch)."""

from __future__ import annotations

from pathlib import Path

from osp_opt.base.errors import CheckpointError

__all__ = ["local_transformer", "transformer_in"]


def local_transformer(folder: Path, version: str | None) -> Path:
    """The transformer's folder at or under a `--model-path` on this machine.

    A checkpoint without a folder `version` is taken itself, as the reference tool does. Raises
    CheckpointError, naming the folders that could be meant.
    """
    if version is None:
        return transformer_in(folder)
    if (folder / version).is_dir():
        return transformer_in(folder / version)
    if (folder / "config.json").is_file():
        return folder
    inside = sorted(each.name for each in folder.iterdir() if each.is_dir())
    known = ", ".join(inside[:8]) or "no folders"
    raise CheckpointError(f"--version {version}: no such folder; {folder} has {known}")


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
