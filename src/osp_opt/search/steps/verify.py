"""Verification of a searched schedule on fresh prompts, in numbers that people ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import Interval, paired_difference
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.evidence import TIMED_VIDEOS, Evidence, evidence_of, log_error_ratios
from osp_opt.search.trials import Trials, Variant

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """A schedule, and the uniform one of its length, against the full-length videos.

    uniform is of the scheduler's own steps where a model has these; `plain_steps` says so.
    psnr_gain: dB nearer than uniform's, in pairs. errors: mean squared, of latents, by name of
    schedule ("searched", "plain", others that were compared), per prompt.
    """

    steps: int
    searched: Evidence
    uniform: Evidence
    psnr_gain: Interval
    log_ratios: tuple[float, ...]  # of latent errors, own over uniform's, per prompt
    errors: dict[str, tuple[float, ...]] = field(repr=False)
    videos: list[dict[str, Any]] = field(repr=False)
    plain_steps: str = "uniform"

    @property
    def worse(self) -> int:
        """On how many of the prompts the uniform schedule is nearer to the full length."""
        return sum(ratio > 0 for ratio in self.log_ratios)

    def lines(self) -> list[str]:
        """For the terminal."""
        gain, own = self.psnr_gain.text(digits=1, unit=" dB"), self.searched
        uniform = self.uniform.psnr.text(digits=1, unit=" dB")
        return [
            f"{self.steps} steps: {own.lines()[0]}",
            *own.lines()[1:],
            f"{self.plain_steps} steps {uniform}, gain {gain}; worse on {self.worse} of "
            f"{own.psnr.count}",
        ]

    def as_json(self) -> dict[str, Any]:
        """The fields; intervals as objects."""
        return {
            "steps": self.steps,
            "searched": self.searched.as_json(),
            "plain": self.uniform.as_json(),
            "psnr_gain": self.psnr_gain.as_json(),
            "worse": self.worse,
            "videos": self.videos,
        }


def verify(
    trials: Trials,
    schedule: TimestepSchedule,
    uniform: TimestepSchedule,
    requests: Sequence[Request],
    others: Mapping[str, TimestepSchedule] | None = None,
    plain_steps: str = "uniform",
) -> Verification:
    """Sample the original, uniform, `schedule` and `others` (by name, only to be compared) on
    `requests` with coupled noise. `plain_steps` is what the uniform ones are called.
    """
    named = {"searched": schedule, "plain": uniform, **(others or {})}
    variants = [Variant(each) for each in named.values()]
    rows = dict(zip(named, trials.compared(variants, requests), strict=True))
    own, even = rows["searched"], rows["plain"]
    return Verification(
        steps=len(schedule),
        searched=evidence_of(own, trials.speedups(variants[0], requests[:TIMED_VIDEOS])),
        uniform=evidence_of(even),
        psnr_gain=paired_difference([r["psnr"] for r in own], [r["psnr"] for r in even]),
        log_ratios=log_error_ratios(own, even),
        errors={name: tuple(float(r["mse"]) for r in found) for name, found in rows.items()},
        videos=[
            r.as_json() | {name: rows[name][i] for name in rows} for i, r in enumerate(requests)
        ],
        plain_steps=plain_steps,
    )
