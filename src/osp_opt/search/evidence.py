"""What was shown of a variant, on videos that did not choose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import FEWEST, Interval, mean_ci, ratio_ci
from osp_opt.quality.loss import Loss, loss_of
from osp_opt.quality.metrics import log_error
from osp_opt.search.trials import Trials, Variant
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["TIMED_VIDEOS", "Evidence", "evidence_of", "judge", "log_error_ratios"]

TIMED_VIDEOS = FEWEST  # on which speed is measured


@dataclass(frozen=True)
class Evidence:
    """A variant against the original, over videos (of one prompt each).

    speedup: of denoising, measured in turns; None where it was not timed. psnr: dB of raw frames;
    worst: of the video furthest off. ssim: None for frames too small for it. latent_mse: of the
    scaled latents, geometric mean.
    """

    psnr: Interval
    worst: float
    ssim: Interval | None
    latent_mse: float
    loss: Loss
    speedup: Interval | None = None

    def lines(self) -> list[str]:
        """For the terminal."""
        against = f"against the original on {self.psnr.count} fresh videos"
        told = f"PSNR {self.psnr.text(digits=1, unit=' dB')}, the worst {self.worst:.1f} dB"
        lines = [f"{against}: {told}", self.loss.line()]
        if self.speedup is not None:
            lines.insert(
                0, f"measured speed-up of denoising: {self.speedup.text(digits=2, unit='x')}"
            )
        return lines

    def as_json(self) -> dict[str, Any]:
        """The fields; intervals as objects."""
        return {
            "speedup": None if self.speedup is None else self.speedup.as_json(),
            "psnr": self.psnr.as_json(),
            "worst_psnr": self.worst,
            "ssim": None if self.ssim is None else self.ssim.as_json(),
            "latent_mse": self.latent_mse,
            "loss": self.loss.as_json(),
        }


def evidence_of(
    rows: Sequence[Mapping[str, Any]], speedups: Sequence[float] | None = None
) -> Evidence:
    """From what `Trials.compared` and `Trials.speedups` found of one variant."""
    psnr = [float(row["psnr"]) for row in rows]
    ssim = [float(row["ssim"]) for row in rows if "ssim" in row] or None
    right, read = None, [row for row in rows if "right" in row]
    if read:
        right = sum(row["right_before"] for row in read), sum(row["right"] for row in read)
    return Evidence(
        psnr=mean_ci(psnr),
        worst=min(psnr),
        ssim=None if ssim is None else mean_ci(ssim),
        latent_mse=float(np.exp(log_error([row["mse"] for row in rows]).mean())),
        loss=loss_of(psnr, ssim, right, len(ATTRIBUTES) * len(read)),
        speedup=None if speedups is None else ratio_ci(speedups),
    )


def log_error_ratios(
    rows: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], name: str = "mse"
) -> tuple[float, ...]:
    """Per video, the log of one variant's latent error over another's, of `Trials.compared`; its
    "mse" is the distance to the original, its "converged_mse" that to the converged video.
    """
    return tuple(
        float(log_error(a[name]) - log_error(b[name])) for a, b in zip(rows, others, strict=True)
    )


def judge(trials: Trials, variant: Variant, requests: Sequence[Request]) -> Evidence:
    """Make and time `variant` on `requests`, which have to be fresh."""
    (rows,) = trials.compared([variant], requests)
    return evidence_of(rows, trials.speedups(variant, requests[:TIMED_VIDEOS]))
