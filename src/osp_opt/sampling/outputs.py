"""What a pipeline returns: videos in the form that was asked for. b videos, t frames, h w size."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from einops import rearrange
from PIL import Image
from torch import Tensor

__all__ = ["OUTPUT_TYPES", "OpenSoraPlanOutput", "finish", "in_form", "to_uint8"]

OUTPUT_TYPES = ("uint8", "np", "pt", "pil", "latent")


@dataclass
class OpenSoraPlanOutput(BaseOutput):
    """`frames` of b videos, by `output_type`:

    "uint8" a tensor [b t h w c]; "np" a float array [b t h w c] in [0, 1]; "pt" the same as a
    tensor [b t c h w]; "pil" a list of t images for each video; "latent" a tensor [b c t h w].
    """

    frames: Tensor | np.ndarray[Any, Any] | list[list[Image.Image]]

    @property
    def videos(self) -> Any:
        """The frames under another name."""
        return self.frames

    @property
    def images(self) -> Any:
        """The frames under the name of the original pipeline."""
        return self.frames


def to_uint8(frames: Tensor) -> Tensor:
    """[t h w c] in [0, 1] to uint8 on the CPU, truncating as the original does; writes into it."""
    return frames.mul_(255).to(torch.uint8).cpu()


def finish(output_type: str) -> Callable[[Tensor], Tensor]:
    """What is kept of a piece of a video [t h w c] in [0, 1]."""
    return to_uint8 if output_type in ("uint8", "pil") else Tensor.cpu


def in_form(videos: Iterable[Tensor], output_type: str) -> Any:
    """Videos [t h w c], finished, as `output_type` (but "latent")."""
    if output_type == "pil":
        return [[Image.fromarray(frame) for frame in video.numpy()] for video in videos]
    whole = torch.stack([*videos])
    if output_type == "pt":
        return rearrange(whole, "b t h w c -> b t c h w")
    return whole.numpy() if output_type == "np" else whole
