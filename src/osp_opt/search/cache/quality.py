"""What a cache costs in quality, from pairs of the same videos without and with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osp_opt.generate.maker import VideoMaker
from osp_opt.quality.intervals import Interval, lost_share, mean_ci
from osp_opt.quality.metrics import SSIM_WINDOW, psnr, ssim
from osp_opt.search.cache.trials import Pair
from osp_opt.tiny.captions import parse
from osp_opt.tiny.checker import check
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["Quality", "interval_from", "measure_quality"]

VISIBLE_PSNR = 40.0  # dB, at which differences can hardly be seen


@dataclass(frozen=True)
class Quality:
    """Errors against the uncached videos, over videos.

    latent_mse: of the scaled latents, geometric mean. psnr: of raw frames, dB. ssim: None for
    frames too small. loss: of quality as a share, of `measure`. task: share of the bundled model's
    attributes that are as asked, without and with the cache.
    """

    latent_mse: float
    psnr: Interval
    ssim: Interval | None
    loss: Interval
    measure: str
    task: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """The fields; intervals as objects."""
        return {
            "latent_mse": self.latent_mse,
            "psnr": self.psnr.as_json(),
            "ssim": None if self.ssim is None else self.ssim.as_json(),
            "loss": self.loss.as_json(),
            "measure": self.measure,
            "task_quality": None if self.task is None else list(self.task),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Quality:
        """The inverse of `as_json`; further keys are ignored."""
        task, ssim_values = values["task_quality"], values["ssim"]
        return cls(
            values["latent_mse"],
            interval_from(values["psnr"]),
            None if ssim_values is None else interval_from(ssim_values),
            interval_from(values["loss"]),
            values["measure"],
            None if task is None else (task[0], task[1]),
        )

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [
            f"error against the uncached video, {self.psnr.count} fresh videos: "
            f"PSNR {self.psnr.estimate:.1f} [{self.psnr.low:.1f}, {self.psnr.high:.1f}] dB"
        ]
        if self.ssim is not None:
            lines[0] += f", SSIM {self.ssim.estimate:.4f}"
        if self.task is not None:
            lines.append(
                f"attributes as asked: {self.task[0]:.0%} without cache, {self.task[1]:.0%} with it"
            )
        return lines


def interval_from(values: Mapping[str, Any]) -> Interval:
    """The inverse of `Interval.as_json`: an unknown bound is infinite."""
    low = -math.inf if values["low"] is None else values["low"]
    high = math.inf if values["high"] is None else values["high"]
    return Interval(values["estimate"], low, high, values["count"])


def measure_quality(pairs: Sequence[Pair], maker: VideoMaker) -> Quality:
    """Decode both videos of each pair and compare them."""
    fidelity: list[float] = []
    similarity: list[float] = []
    right: list[tuple[float, float]] = []
    for pair in pairs:
        plain, cached = maker.decode(pair.plain), maker.decode(pair.cached)
        fidelity.append(psnr(cached, plain))
        if min(plain.shape[1:3]) >= SSIM_WINDOW:
            similarity.append(ssim(cached, plain))
        prompt = pair.request.prompt
        if maker.is_bundled and len(plain) > 1 and parse(prompt) is not None:
            right.append((_share_right(plain, prompt), _share_right(cached, prompt)))
    latent_mse = float(np.exp(np.mean([np.log(max(pair.mse, 1e-30)) for pair in pairs])))
    loss, measure, task = _loss(fidelity, similarity, right)
    return Quality(
        latent_mse,
        mean_ci(fidelity),
        mean_ci(similarity) if similarity else None,
        loss,
        measure,
        task,
    )


def _loss(
    fidelity: list[float], similarity: list[float], right: list[tuple[float, float]]
) -> tuple[Interval, str, tuple[float, float] | None]:
    """As the step search: of attributes that are as asked, else of SSIM, else of PSNR."""
    task = None
    if right:
        before, after = ([pair[i] for pair in right] for i in (0, 1))
        task = float(np.mean(before)), float(np.mean(after))
        if task[0] > 0:
            return lost_share(before, after), "attributes as asked", task
    if similarity:
        return mean_ci([1.0 - value for value in similarity]), "SSIM", task
    below = [max(0.0, 1.0 - value / VISIBLE_PSNR) for value in fidelity]
    return mean_ci(below), "PSNR", task


def _share_right(video: np.ndarray, prompt: str) -> float:
    result = check(video, prompt)
    return float(np.mean([getattr(result, name).right for name in ATTRIBUTES]))
