"""LPIPS (Zhang et al. 2018) by torchmetrics, where its weights are on this machine.

The linear layers come with torchmetrics; the AlexNet below them is torchvision's, whose weights
torch keeps in its hub folder. Nothing is ever fetched: without them there is no LPIPS, and the
evaluation says so.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import torch
from einops import rearrange

from osp_opt.base.errors import FileError, first_line
from osp_opt.base.video import Frames

__all__ = ["Lpips"]

_WEIGHTS = "alexnet-*.pth"
_FRAMES_AT_ONCE = 8


class Lpips:
    """Perceptual distance of two videos; make one with `open`."""

    @classmethod
    def open(cls) -> Lpips | str:
        """The metric, or why it cannot be had here."""
        if importlib.util.find_spec("torchvision") is None:
            return "LPIPS: torchvision is not installed"
        try:
            importlib.import_module("torchvision")
        except (ImportError, RuntimeError, OSError) as error:  # built for another torch
            return f"LPIPS: torchvision cannot be imported ({first_line(error)})"
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        if not any(folder.glob(_WEIGHTS)):
            return "LPIPS: torchvision's AlexNet weights are not on this machine"
        return cls()

    def __call__(self, candidate: Frames, reference: Frames) -> float:
        """Mean over frames of two videos uint8 [t h w c]; 0 for equal ones."""
        from torchmetrics.functional.image.lpips import (
            learned_perceptual_image_patch_similarity as distance,
        )

        total = 0.0
        for start in range(0, len(reference), _FRAMES_AT_ONCE):
            x, y = (
                rearrange(torch.from_numpy(video[start : start + _FRAMES_AT_ONCE]), _PLANES) / 255.0
                for video in (candidate, reference)
            )
            try:
                value = distance(x, y, net_type="alex", reduction="sum", normalize=True)
            except (RuntimeError, OSError) as error:
                raise FileError(
                    f"LPIPS: AlexNet cannot be loaded or run ({first_line(error)}); "
                    "leave it out with --no-lpips"
                ) from error
            total += float(value)
        return total / len(reference)


_PLANES = "t h w c -> t c h w"
