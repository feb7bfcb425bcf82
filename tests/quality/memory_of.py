"""How much memory one piece of work takes beyond the frames that it is about, in a process."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from osp_opt.base.video import write_grid
from osp_opt.model.vae.tiling import Tiling, run_tiles, tiled
from osp_opt.quality.metrics import flicker, frame_ssim, psnr


def peak() -> int:
    """Most memory of this process so far; what getrusage tells begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def upsample(z: Tensor) -> Tensor:
    big = z[:, :3].repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
    return torch.cat([big[:, :, :1], big[:, :, 1:].repeat_interleave(4, dim=2)], dim=2)


def decode(frames: int, height: int, width: int) -> None:
    """As the pipeline does, with a decoder that costs nothing."""
    z = torch.zeros(1, 4, (frames - 1) // 4 + 1, height // 8, width // 8)
    grid = Tiling(overlap=0.2).decode_grid
    pieces = [piece.to(torch.uint8) for piece in tiled(z, upsample, grid, run_tiles)]
    assert torch.cat(pieces, dim=2).shape == (1, 3, frames, height, width)


def main(shape: tuple[int, int, int], what: str, told: Path) -> None:
    """Write the bytes into the file `told`; `shape`: frames, height, width."""
    frames, height, width = shape
    a = np.tile(np.arange(width, dtype=np.uint8)[:, None], (frames, height, 1, 3))
    b = a.copy()
    b[:, ::2] //= 2
    with tempfile.TemporaryDirectory() as name:
        work = {
            "compare": lambda: (psnr(a, b), frame_ssim(a, b), flicker(a)),
            "psnr": lambda: (psnr(a, b), flicker(a), frame_ssim(a[:1], b[:1])),
            "grid": lambda: write_grid(Path(name) / "grid.mp4", [a[:5]] * 16, 24),
            "decode": lambda: decode(frames, height, width),
        }
        frame_ssim(a[:1, :16, :16], b[:1, :16, :16])  # whatever is loaded at first use
        before = peak()
        work[what]()
        told.write_text(str(peak() - before))
