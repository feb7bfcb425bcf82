"""Latents of reference videos, on disk too: a killed search does not sample them again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from osp_opt.base.artifacts import atomic_write_bytes, read_bytes
from osp_opt.base.errors import FileError
from osp_opt.pipelines.maker import Request
from osp_opt.system.context import WorkerContext
from osp_opt.system.parallel import Parallel

__all__ = ["LatentStore", "References", "load_latents", "save_latents"]

_MAX_BYTES = 2**31


def save_latents(path: Path, latents: Tensor) -> None:
    """Keep latents in a safetensors file. Raises FileError."""
    atomic_write_bytes(path, save_tensors({"latents": latents.detach().cpu().contiguous()}))


def load_latents(path: Path) -> Tensor:
    """What `save_latents` kept, on the host. Raises FileError when the file is damaged."""
    data = read_bytes(path, "latents file", _MAX_BYTES)
    try:
        latents = load_tensors(data)["latents"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise FileError(f"{path}: damaged; delete it to sample that video again") from error
    if not torch.isfinite(latents).all():
        raise FileError(f"{path}: holds NaN or infinities; delete it to sample that one again")
    return latents


class LatentStore:
    """One safetensors file per request in `folder`; `prefix` names what they were made with."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder = folder
        self._prefix = prefix

    def save(self, request: Request, latents: Tensor) -> None:
        """Keep the latents of `request`."""
        save_latents(self._path(request), latents)

    def load(self, request: Request) -> Tensor | None:
        """What `save` kept, or None. Raises FileError when the file is damaged."""
        path = self._path(request)
        return load_latents(path) if path.is_file() else None

    def _path(self, request: Request) -> Path:
        text = f"{self._prefix}\0{request.seed}\0{request.prompt}"
        return self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


class References:
    """The videos that others are compared with: latents [1 c t h w] on the host, by request.

    Args:
        store: where they are kept.
        sample: makes the latents of one.
        context: whose ranks share the work.
        what: names the work for the progress bar.
        layout: gives the ranks the layout in which so many are sampled.
        cost: work of each, in generations.
    """

    def __init__(
        self,
        store: LatentStore,
        sample: Callable[[Request], Tensor],
        context: WorkerContext,
        what: str,
        layout: Callable[[int], Parallel],
        cost: float = 1.0,
    ) -> None:
        self._store = store
        self._sample = sample
        self._parallel = context.parallel
        self._progress = context.progress
        self._what = what
        self._layout = layout
        self._cost = cost
        self._latents: dict[Request, Tensor] = {}

    def __getitem__(self, request: Request) -> Tensor:
        """The latents of a request that was prepared."""
        return self._latents[request]

    def prepare(self, requests: Sequence[Request]) -> None:
        """Sample what is not there yet, or find it from an earlier, killed run (collective)."""
        wanted = [r for r in dict.fromkeys(requests) if r not in self._latents]
        if not wanted:
            return
        found = {r: self._store.load(r) for r in wanted} if self._parallel.is_main else {}
        found = self._parallel.broadcast_object(found)
        self._latents |= {r: latents for r, latents in found.items() if latents is not None}
        missing = [r for r in wanted if r not in self._latents]
        parallel = self._layout(len(missing)) if missing else self._parallel
        mine, made = parallel.share(missing), []
        work = self._cost * len(wanted)  # of what was planned for the command
        with self._progress.task(self._what, len(mine), work) as task:
            for request in mine:
                made.append(self._sample(request).float().cpu())
                if parallel.is_leader:
                    self._store.save(request, made[-1])
                task.advance()
        self._latents |= dict(zip(missing, parallel.gather_shared(made), strict=True))
