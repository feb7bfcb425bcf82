"""A diffusers pipeline from its folder, or from the hub: looked at first, then loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from osp_opt.base.errors import CheckpointError, first_line
from osp_opt.model.weights import names
from osp_opt.pipelines.files import described
from osp_opt.pipelines.requirements import check_kind

__all__ = ["load_from_diffusers"]

_REFUSALS = (OSError, ValueError, TypeError, AttributeError, KeyError, ImportError)


def load_from_diffusers(
    place: str | Path, dtype: torch.dtype | None, cache_dir: str | Path | None
) -> tuple[Any, Path]:
    """The pipeline in host memory, and its local folder.

    Raises CheckpointError for what is no text-to-video pipeline, or lacks a part.
    """
    folder = _folder_of(place, cache_dir)
    if (found := described(folder)) is not None:
        check_kind(found)  # before gigabytes of weights are read
    try:
        with _without_bars():
            pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype)
    except _REFUSALS as error:
        said = first_line(error)
        if "low_cpu_mem_usage" in said:  # diffusers' way to say what is missing
            said = "it needs accelerate: pip install 'osp-opt[pipelines]'"
        raise CheckpointError(f"{place}: diffusers cannot load it ({said:.300})") from error
    _check_filled(place, pipe)
    return pipe, folder


def _folder_of(place: str | Path, cache_dir: str | Path | None) -> Path:
    """A pipeline's local folder, downloaded where `place` is a hub id. Raises CheckpointError."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        return folder
    try:
        return Path(DiffusionPipeline.download(str(place), cache_dir=cache_dir))
    except _REFUSALS as error:
        said = first_line(error)
        raise CheckpointError(
            f"{place}: no such folder, and the hub did not deliver it ({said:.300})"
        ) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Progress bars of diffusers and transformers are off inside, and then as they were."""
    shown = [
        each for each in (diffusers_logging, transformers_logging) if each.is_progress_bar_enabled()
    ]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


def _check_filled(place: str | Path, pipe: Any) -> None:
    """Raise CheckpointError where weights that a component's config asks for are in no file."""
    for part, module in pipe.components.items():
        tensors = module.state_dict() if isinstance(module, nn.Module) else {}
        empty = [name for name, tensor in tensors.items() if tensor.is_meta]
        if empty:
            raise CheckpointError(
                f"{place}: {part}: no weights for {names(empty)}, which its config.json asks for; "
                "the two do not belong together"
            )
