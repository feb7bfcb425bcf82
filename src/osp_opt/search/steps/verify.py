"""Verification of a searched schedule on fresh prompts, in numbers that people ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from osp_opt.generate.maker import Request
from osp_opt.quality.intervals import Interval, lost_share, mean_ci, paired_difference
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.trials import StepTrials

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """A schedule and the uniform one of its length against the full-length videos.

    psnr, psnr_uniform: dB to the full-length video, over prompts; psnr_gain: their difference in
    pairs. ssim: as psnr, None for frames too small. loss: of quality against the full length, as
    a share, by `measure`; loss_uniform: likewise of the uniform one. speedup: of denoising,
    measured on one prompt. errors: mean squared, of latents, by name of schedule ("searched",
    "uniform", others that were compared), per prompt.
    """

    steps: int
    psnr: Interval
    psnr_uniform: Interval
    psnr_gain: Interval
    ssim: Interval | None
    ssim_uniform: Interval | None
    loss: Interval
    loss_uniform: Interval
    measure: str
    speedup: float
    log_ratios: tuple[float, ...]  # of latent errors, own over uniform's, per prompt
    errors: dict[str, tuple[float, ...]] = field(repr=False)
    videos: list[dict[str, Any]] = field(repr=False)

    def lines(self) -> list[str]:
        """For the terminal."""
        return [
            f"verified on {self.psnr.count} fresh prompts: {self.steps} steps, "
            f"{self.speedup:.2f}x faster denoising",
            f"  PSNR to the full-length video {_db(self.psnr)}, uniform {_db(self.psnr_uniform)}, "
            f"gain {_db(self.psnr_gain)}",
            f"  loss of {self.measure}: {self.loss.estimate:.1%} "
            f"[{self.loss.low:.1%}, {self.loss.high:.1%}]",
        ]

    def as_json(self) -> dict[str, Any]:
        """The fields; intervals as objects."""
        names = ("psnr", "psnr_uniform", "psnr_gain", "ssim", "ssim_uniform")
        values = {name: getattr(self, name) for name in (*names, "loss", "loss_uniform")}
        return {
            **{name: None if value is None else value.as_json() for name, value in values.items()},
            "steps": self.steps,
            "measure": self.measure,
            "speedup": self.speedup,
            "videos": self.videos,
        }


def verify(
    trials: StepTrials,
    schedule: TimestepSchedule,
    uniform: TimestepSchedule,
    reference: TimestepSchedule,
    requests: Sequence[Request],
    others: Mapping[str, TimestepSchedule] | None = None,
) -> Verification:
    """Sample the full length, uniform, `schedule` and `others` (by name, only to be compared) on
    `requests` with coupled noise.
    """
    others = others or {}
    schedules = [reference, uniform, schedule, *others.values()]
    full, even, own, *rest = trials.verified(schedules, requests)
    named = {"uniform": even, "searched": own, **dict(zip(others, rest, strict=True))}
    loss, measure = _loss(full, own)
    loss_uniform, _ = _loss(full, even)
    errors = {name: tuple(_errors(rows)) for name, rows in named.items()}
    return Verification(
        steps=len(schedule),
        psnr=mean_ci(_column(own, "psnr")),
        psnr_uniform=mean_ci(_column(even, "psnr")),
        psnr_gain=paired_difference(_column(own, "psnr"), _column(even, "psnr")),
        ssim=mean_ci(_column(own, "ssim")) if "ssim" in own[0] else None,
        ssim_uniform=mean_ci(_column(even, "ssim")) if "ssim" in even[0] else None,
        loss=loss,
        loss_uniform=loss_uniform,
        measure=measure,
        speedup=trials.speedup(schedule, requests[0]),
        log_ratios=tuple(
            math.log(max(o, 1e-30) / max(e, 1e-30))
            for o, e in zip(errors["searched"], errors["uniform"], strict=True)
        ),
        errors=errors,
        videos=[
            {"prompt": r.prompt, "seed": r.seed, "full": full[i]}
            | {name: rows[i] for name, rows in named.items()}
            for i, r in enumerate(requests)
        ],
    )


def _errors(rows: list[dict[str, Any]]) -> list[float]:
    return [float(row.get("mse", 0.0)) for row in rows]  # the full length itself has none


def _loss(full: list[dict[str, Any]], own: list[dict[str, Any]]) -> tuple[Interval, str]:
    """Loss against the full length as a share: of attributes that are right, else of SSIM, else
    (frames too small for SSIM) of PSNR below the 40 dB at which differences can hardly be seen.
    """
    if all("right" in values for values in full):
        reference = _column(full, "right")
        if any(reference):
            return lost_share(reference, _column(own, "right")), "attributes as asked"
    if all("ssim" in values for values in own):
        return mean_ci([1.0 - value for value in _column(own, "ssim")]), "SSIM"
    return mean_ci([max(0.0, 1.0 - value / 40.0) for value in _column(own, "psnr")]), "PSNR"


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _db(interval: Interval) -> str:
    return f"{interval.estimate:.1f} [{interval.low:.1f}, {interval.high:.1f}] dB"
