"""What a cache costs in quality, from pairs of the same videos without and with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osp_opt.jobs.cache_trials import Pair
from osp_opt.jobs.generation import VideoMaker
from osp_opt.search.trials import Interval, mean_ci
from osp_opt.tiny.captions import parse
from osp_opt.tiny.checker import check

__all__ = ["Quality", "measure_quality"]

MAX_PSNR = 100.0  # of identical frames, where the logarithm has no value


@dataclass(frozen=True)
class Quality:
    """Errors against the uncached videos, with intervals over videos.

    latent_mse: geometric mean. psnr: of raw uint8 frames, dB. loss: of task quality, the share of
    the checker's attributes that are lost on the bundled model, elsewhere the share of frame
    variance that differs (1 - R^2 of the frames).
    """

    latent_mse: float
    psnr: Interval
    loss: float
    loss_name: str
    task: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "latent_mse": self.latent_mse,
            "psnr": self.psnr.as_json(),
            "loss": self.loss,
            "loss_name": self.loss_name,
            "task_quality": None if self.task is None else list(self.task),
        }

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"PSNR to the uncached video: {self.psnr} dB (95 % interval over videos)"]
        if self.task is not None:
            lines.append(
                f"attributes read correctly: {100 * self.task[0]:.0f} % without cache, "
                f"{100 * self.task[1]:.0f} % with it"
            )
        return lines


def measure_quality(pairs: Sequence[Pair], maker: VideoMaker) -> Quality:
    """Decode both videos of each pair and compare them."""
    psnr, unexplained, right = [], [], []
    for pair in pairs:
        plain, cached = (maker.decode(latents) for latents in (pair.plain, pair.cached))
        mse = float(np.mean((plain.astype(np.float64) - cached) ** 2))
        psnr.append(MAX_PSNR if mse == 0 else min(MAX_PSNR, 10 * np.log10(255.0**2 / mse)))
        unexplained.append(mse / max(float(np.var(plain.astype(np.float64))), 1.0))
        spec = parse(pair.request.prompt) if maker.is_bundled else None
        if spec is not None:
            right.append([_share_right(video, pair.request.prompt) for video in (plain, cached)])
    latent_mse = float(np.exp(np.mean([np.log(max(pair.mse, 1e-30)) for pair in pairs])))
    if not right:
        loss = float(np.mean(unexplained))
        return Quality(latent_mse, mean_ci(psnr), loss, "frame variance that differs:")
    before, after = np.mean(right, axis=0)
    task = (float(before), float(after))
    loss = max(task[0] - task[1], 0.0)
    return Quality(latent_mse, mean_ci(psnr), loss, "loss of attributes read correctly:", task)


def _share_right(video: np.ndarray, prompt: str) -> float:
    result = check(video, prompt)
    attributes = (result.shape, result.color, result.background, result.motion)
    return float(np.mean([attribute.right for attribute in attributes]))
