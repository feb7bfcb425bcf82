"""Real sampling for the step search: schedules against the full-length video, and verification.

Everything measured goes into the ledger at once, so that a killed search goes on where it was.
The race compares raw latents; verification compares decoded frames. No codec is involved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from osp_opt.generate.maker import Request, VideoMaker
from osp_opt.generate.measurements import Measurements
from osp_opt.generate.references import LatentStore, References
from osp_opt.quality.metrics import MAX_PSNR, mse, psnr, ssim
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.tiny.captions import parse
from osp_opt.tiny.checker import check
from osp_opt.tiny.specs import ATTRIBUTES

if TYPE_CHECKING:
    from osp_opt.system.context import WorkerContext

__all__ = ["StepTrials", "schedule_key"]

_MIN_SSIM_SIZE = 11  # pixels; smaller frames have no SSIM


def schedule_key(schedule: TimestepSchedule) -> str:
    """A short name of a schedule's content, for ledgers."""
    text = ",".join(f"{t:.4f}" for t in (*schedule.timesteps, *schedule.corrections))
    return f"{len(schedule)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class StepTrials:
    """Measures schedules for one model against `reference`, the full-length schedule."""

    def __init__(
        self, maker: VideoMaker, reference: TimestepSchedule, context: WorkerContext
    ) -> None:
        self._maker = maker
        self._reference = reference
        self._measured = Measurements(context.run_dir / "trials.jsonl", context)
        self._of = maker.digest(reference)
        self._layout = str(context.parallel.layout)
        self._full = References(
            LatentStore(context.run_dir / "baseline", self._of),
            lambda request: maker.denoise(request, reference).latents,
            context,
            f"sampling {len(reference)} steps",
        )

    def baseline(self, requests: Sequence[Request]) -> None:
        """Sample the full-length videos, or find those of an earlier, killed run."""
        self._full.prepare(requests)

    def errors(
        self, schedules: Sequence[TimestepSchedule], requests: Sequence[Request]
    ) -> list[float]:
        """Latent MSE of schedules[i] on requests[i], against the full-length video."""
        keys = [
            self._key("error", schedule, request)
            for schedule, request in zip(schedules, requests, strict=True)
        ]

        def measure(i: int) -> dict[str, Any]:
            made = self._maker.denoise(requests[i], schedules[i])
            error = mse(made.latents.cpu(), self._full[requests[i]])
            return {"mse": error, "seconds": made.seconds}

        found = self._measured.of(
            keys, measure, "sampling candidate schedules", self._baseline_of(requests)
        )
        return [float(values["mse"]) for values in found]

    def verified(
        self, schedules: Sequence[TimestepSchedule], requests: Sequence[Request]
    ) -> list[list[dict[str, Any]]]:
        """Frames of each schedule on each request against the full-length video's.

        The result's [s][r] holds psnr (dB), ssim, seconds of denoising and mse of latents (the
        last two not for the full length), and, for prompts that the bundled model's checker can
        read, `right`, the share of attributes that are as asked, and `all_right`, 1 when all are.
        """
        pairs = [(schedule, request) for schedule in schedules for request in requests]
        keys = [self._key("frames", schedule, request) for schedule, request in pairs]

        def measure(i: int) -> dict[str, Any]:
            schedule, request = pairs[i]
            full = frames = self._maker.decode(self._full[request])
            values: dict[str, Any] = {}
            if schedule != self._reference:
                made = self._maker.denoise(request, schedule)
                frames = self._maker.decode(made.latents)
                values["seconds"] = made.seconds
                values["mse"] = mse(made.latents.cpu(), self._full[request])
            values["psnr"] = MAX_PSNR if frames is full else psnr(frames, full)
            if min(frames.shape[1:3]) >= _MIN_SSIM_SIZE:
                values["ssim"] = 1.0 if frames is full else ssim(frames, full)
            if parse(request.prompt) is not None:
                seen = check(frames, request.prompt).right()
                values["right"] = sum(seen[name] for name in ATTRIBUTES) / len(ATTRIBUTES)
                values["all_right"] = float(seen["all"])
            return values

        prepare = self._baseline_of([request for _, request in pairs])
        found = self._measured.of(keys, measure, "sampling to verify", prepare)
        n = len(requests)
        return [found[k * n : (k + 1) * n] for k in range(len(schedules))]

    def speedup(self, schedule: TimestepSchedule, request: Request) -> float:
        """Measured speed-up of denoising over the full length: both on `request`, in turns, because
        a machine's speed changes within minutes; the quicker of two runs each.
        """
        key = {**self._key("timing", schedule, request), "layout": self._layout}

        def measure(_: int) -> dict[str, Any]:
            runs = [
                (
                    self._maker.denoise(request, schedule).seconds,
                    self._maker.denoise(request, self._reference).seconds,
                )
                for _ in range(2)
            ]
            return {"own": min(own for own, _ in runs), "full": min(full for _, full in runs)}

        (values,) = self._measured.of([key], measure, "timing")
        return float(values["full"]) / float(values["own"])

    def _key(self, what: str, schedule: TimestepSchedule, request: Request) -> dict[str, Any]:
        """Of a measurement, for the ledger."""
        return {
            "what": what,
            "of": self._of,
            "schedule": schedule_key(schedule),
            "steps": len(schedule),
            "uniform": schedule.is_uniform,
            "seed": request.seed,
            "prompt": request.prompt,
        }

    def _baseline_of(self, requests: Sequence[Request]) -> Callable[[list[int]], None]:
        return lambda todo: self.baseline([requests[i] for i in todo])
