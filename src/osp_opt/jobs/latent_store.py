"""Latents of finished reference videos on disk: a killed search does not sample them again."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from osp_opt.artifacts import atomic_write_bytes
from osp_opt.errors import FileError
from osp_opt.jobs.generation import Request


class LatentStore:
    """One safetensors file per request in `folder`; `prefix` names what they were made with."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix

    def save(self, request: Request, latents: Tensor) -> None:
        """Keep the latents of `request`."""
        atomic_write_bytes(self._path(request), save_tensors({"latents": latents.contiguous()}))

    def load(self, request: Request) -> Tensor | None:
        """What `save` kept, or None. Raises FileError when the file is damaged."""
        path = self._path(request)
        if not path.is_file():
            return None
        try:
            latents = load_tensors(path.read_bytes())["latents"]
        except (SafetensorError, KeyError, OSError) as error:
            raise FileError(f"{path}: damaged; delete it to sample that video again") from error
        if not torch.isfinite(latents).all():
            raise FileError(f"{path}: holds NaN or infinities; delete it to sample that one again")
        return latents

    def _path(self, request: Request) -> Path:
        text = f"{self._prefix}\0{request.seed}\0{request.prompt}"
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"
