"""What a cache costs in quality, from pairs of the same videos without and with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osp_opt.generate.maker import VideoMaker
from osp_opt.quality.intervals import Interval, mean_ci
from osp_opt.quality.loss import Loss, loss_of
from osp_opt.quality.metrics import SSIM_WINDOW, psnr, ssim
from osp_opt.search.cache.trials import Pair
from osp_opt.tiny.captions import parse
from osp_opt.tiny.checker import check
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["Quality", "measure_quality"]


@dataclass(frozen=True)
class Quality:
    """Errors against the uncached videos, over videos.

    latent_mse: of the scaled latents, geometric mean. psnr: of raw frames, dB. ssim: None for
    frames too small.
    """

    latent_mse: float
    psnr: Interval
    ssim: Interval | None
    loss: Loss

    def as_json(self) -> dict[str, Any]:
        """The fields; intervals as objects."""
        return {
            "latent_mse": self.latent_mse,
            "psnr": self.psnr.as_json(),
            "ssim": None if self.ssim is None else self.ssim.as_json(),
            "loss": self.loss.as_json(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Quality:
        """The inverse of `as_json`; further keys are ignored."""
        ssim_values = values["ssim"]
        return cls(
            values["latent_mse"],
            Interval.from_json(values["psnr"]),
            None if ssim_values is None else Interval.from_json(ssim_values),
            Loss.from_json(values["loss"]),
        )

    def lines(self) -> list[str]:
        """For the terminal."""
        return [
            f"error against the uncached video, {self.psnr.count} fresh videos: "
            f"PSNR {self.psnr.text(digits=1, unit=' dB')}",
            self.loss.line(),
        ]


def measure_quality(pairs: Sequence[Pair], maker: VideoMaker) -> Quality:
    """Decode both videos of each pair and compare them."""
    fidelity: list[float] = []
    similarity: list[float] = []
    right: list[tuple[int, int]] = []
    for pair in pairs:
        plain, cached = maker.decode(pair.plain), maker.decode(pair.cached)
        fidelity.append(psnr(cached, plain))
        if min(plain.shape[1:3]) >= SSIM_WINDOW:
            similarity.append(ssim(cached, plain))
        prompt = pair.request.prompt
        if maker.is_bundled and len(plain) > 1 and parse(prompt) is not None:
            right.append((_right(plain, prompt), _right(cached, prompt)))
    latent_mse = float(np.exp(np.mean([np.log(max(pair.mse, 1e-30)) for pair in pairs])))
    told = None
    if right:
        told = sum(before for before, _ in right), sum(after for _, after in right)
    return Quality(
        latent_mse,
        mean_ci(fidelity),
        mean_ci(similarity) if similarity else None,
        loss_of(fidelity, similarity or None, told, len(ATTRIBUTES) * len(right)),
    )


def _right(video: np.ndarray, prompt: str) -> int:
    """How many attributes are as asked."""
    result = check(video, prompt)
    return sum(getattr(result, name).right for name in ATTRIBUTES)
