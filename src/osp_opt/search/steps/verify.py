"""Verification of a searched schedule on fresh prompts, in numbers that people ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from osp_opt.generate.maker import Request
from osp_opt.quality.intervals import Interval, mean_ci, paired_difference
from osp_opt.quality.loss import Loss, loss_of
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.trials import StepTrials
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """A schedule and the uniform one of its length against the full-length videos.

    psnr, psnr_uniform: dB to the full-length video, over prompts; psnr_gain: their difference in
    pairs. ssim: as psnr, None for frames too small. loss: against the full
    length; loss_uniform: likewise of the uniform one. speedup: of denoising,
    measured on one prompt. errors: mean squared, of latents, by name of schedule ("searched",
    "uniform", others that were compared), per prompt.
    """

    steps: int
    psnr: Interval
    psnr_uniform: Interval
    psnr_gain: Interval
    ssim: Interval | None
    ssim_uniform: Interval | None
    loss: Loss
    loss_uniform: Loss
    speedup: float
    log_ratios: tuple[float, ...]  # of latent errors, own over uniform's, per prompt
    errors: dict[str, tuple[float, ...]] = field(repr=False)
    videos: list[dict[str, Any]] = field(repr=False)

    @property
    def worse(self) -> int:
        """On how many of the prompts the uniform schedule is nearer to the full length."""
        return sum(ratio > 0 for ratio in self.log_ratios)

    def lines(self) -> list[str]:
        """For the terminal."""
        return [
            f"verified on {self.psnr.count} fresh prompts: {self.steps} steps, "
            f"{self.speedup:.2f}x faster denoising",
            f"  PSNR to the full-length video {_db(self.psnr)}, uniform {_db(self.psnr_uniform)}, "
            f"gain {_db(self.psnr_gain)}; worse on {self.worse} of {self.psnr.count}",
            f"  {self.loss.line()}",
        ]

    def as_json(self) -> dict[str, Any]:
        """The fields; intervals as objects."""
        names = (
            "psnr",
            "psnr_uniform",
            "psnr_gain",
            "ssim",
            "ssim_uniform",
            "loss",
            "loss_uniform",
        )
        values = {name: getattr(self, name) for name in names}
        return {
            **{name: None if value is None else value.as_json() for name, value in values.items()},
            "steps": self.steps,
            "worse": self.worse,
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
    errors = {name: tuple(_errors(rows)) for name, rows in named.items()}
    return Verification(
        steps=len(schedule),
        psnr=mean_ci(_column(own, "psnr")),
        psnr_uniform=mean_ci(_column(even, "psnr")),
        psnr_gain=paired_difference(_column(own, "psnr"), _column(even, "psnr")),
        ssim=mean_ci(_column(own, "ssim")) if "ssim" in own[0] else None,
        ssim_uniform=mean_ci(_column(even, "ssim")) if "ssim" in even[0] else None,
        loss=_loss(full, own),
        loss_uniform=_loss(full, even),
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


def _loss(full: list[dict[str, Any]], own: list[dict[str, Any]]) -> Loss:
    """Of `own` videos against those of the full length."""
    ssim = _column(own, "ssim") if all("ssim" in values for values in own) else None
    right, asked = None, 0
    if all("right" in values for values in full):
        asked = len(ATTRIBUTES) * len(full)
        counts = [round(len(ATTRIBUTES) * sum(_column(rows, "right"))) for rows in (full, own)]
        right = counts[0], counts[1]
    return loss_of(_column(own, "psnr"), ssim, right, asked)


def _column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _db(interval: Interval) -> str:
    return interval.text(digits=1, unit=" dB")
