"""Real sampling for the step search: schedules against the full-length video, and verification.

Everything measured goes into the ledger at once, so that a killed search goes on where it was.
The race compares raw latents; verification compares decoded frames. No codec is involved.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from osp_opt.jobs.generation import Request, VideoMaker
from osp_opt.jobs.latent_store import LatentStore
from osp_opt.quality.metrics import MAX_PSNR, mse, psnr, ssim
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.trials import TrialLedger
from osp_opt.tiny.captions import parse
from osp_opt.tiny.checker import check
from osp_opt.tiny.specs import ATTRIBUTES

if TYPE_CHECKING:
    from osp_opt.worker import WorkerContext

__all__ = ["StepTrials", "schedule_key"]

_MIN_SSIM_SIZE = 11  # pixels; smaller frames have no SSIM


def schedule_key(schedule: TimestepSchedule) -> str:
    """A short name of a schedule's content, for ledgers."""
    text = ",".join(f"{t:.4f}" for t in schedule.timesteps)
    return f"{len(schedule)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


class StepTrials:
    """Measures schedules for one model against `reference`, the full-length schedule."""

    def __init__(
        self, maker: VideoMaker, reference: TimestepSchedule, context: WorkerContext
    ) -> None:
        self._maker = maker
        self._reference = reference
        self._parallel = context.parallel
        self._progress = context.progress
        self._ledger = TrialLedger(context.run_dir / "trials.jsonl")
        self._latents: dict[Request, Tensor] = {}
        # A folder may outlive the weights it was made with.
        self._prefix = f"{maker.loaded.fingerprint[:12]} {schedule_key(reference)}"
        self._store = LatentStore(context.run_dir / "baseline", self._prefix)

    def errors(
        self, schedules: Sequence[TimestepSchedule], requests: Sequence[Request]
    ) -> list[float]:
        """Latent MSE of schedules[i] on requests[i], against the full-length video."""
        keys = [
            f"error {self._prefix} {schedule_key(schedule)} {request.seed} {request.prompt}"
            for schedule, request in zip(schedules, requests, strict=True)
        ]

        def measure(i: int) -> dict[str, Any]:
            made = self._maker.denoise(requests[i], schedules[i])
            error = mse(made.latents.cpu(), self._latents[requests[i]])
            return {"mse": error, "seconds": made.seconds}

        found = self._measured(keys, requests, measure, "sampling candidate schedules")
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
        keys = [
            f"frames {self._prefix} {schedule_key(schedule)} {request.seed} {request.prompt}"
            for schedule, request in pairs
        ]

        def measure(i: int) -> dict[str, Any]:
            schedule, request = pairs[i]
            full = frames = self._maker.decode(self._latents[request])
            values: dict[str, Any] = {}
            if schedule != self._reference:
                made = self._maker.denoise(request, schedule)
                frames = self._maker.decode(made.latents)
                values["seconds"] = made.seconds
                values["mse"] = mse(made.latents.cpu(), self._latents[request])
            values["psnr"] = MAX_PSNR if frames is full else psnr(frames, full)
            if min(frames.shape[1:3]) >= _MIN_SSIM_SIZE:
                values["ssim"] = 1.0 if frames is full else ssim(frames, full)
            if parse(request.prompt) is not None:
                seen = check(frames, request.prompt).right()
                values["right"] = sum(seen[name] for name in ATTRIBUTES) / len(ATTRIBUTES)
                values["all_right"] = float(seen["all"])
            return values

        found = self._measured(
            keys, [request for _, request in pairs], measure, "sampling to verify"
        )
        n = len(requests)
        return [found[k * n : (k + 1) * n] for k in range(len(schedules))]

    def speedup(self, schedule: TimestepSchedule, request: Request) -> float:
        """Measured speed-up of denoising over the full length: both on `request`, in turns, because
        a machine's speed changes within minutes; the quicker of two runs each.
        """
        key = f"timing {self._prefix} {schedule_key(schedule)} {request.seed} {request.prompt}"

        def measure(_: int) -> dict[str, Any]:
            runs = [
                (
                    self._maker.denoise(request, schedule).seconds,
                    self._maker.denoise(request, self._reference).seconds,
                )
                for _ in range(2)
            ]
            return {"own": min(own for own, _ in runs), "full": min(full for _, full in runs)}

        (values,) = self._measured([key], [request], measure, "timing")
        return float(values["full"]) / float(values["own"])

    def _measured(
        self, keys: Sequence[str], requests: Sequence[Request], measure: Any, what: str
    ) -> list[dict[str, Any]]:
        """The values of every key: from the ledger, or by `measure`, shared out over the ranks."""
        held = {key: found for key in keys if (found := self._ledger.get(key)) is not None}
        known = self._parallel.broadcast_object(held)
        first = {key: i for i, key in reversed(list(enumerate(keys)))}  # one key may be asked twice
        todo = [i for i, key in enumerate(keys) if key not in known and first[key] == i]
        self.baseline(list(dict.fromkeys(requests[i] for i in todo)))
        size = self._parallel.layout.dp
        if todo:
            with self._progress.task(what, len(todo)) as task:
                # One video per rank at a time: what is finished is in the ledger at once.
                for wave in (todo[k : k + size] for k in range(0, len(todo), size)):
                    results = [measure(i) for i in self._parallel.share(wave)]
                    gathered = self._parallel.gather_shared(results)
                    for i, values in zip(wave, gathered, strict=True):
                        known[keys[i]] = values
                        if self._parallel.is_main:
                            self._ledger.add(keys[i], values)
                    task.advance(len(wave))
        return [known[key] for key in keys]

    def baseline(self, requests: Sequence[Request]) -> None:
        """Sample the full-length videos, or find those of an earlier, killed run."""
        wanted = [request for request in requests if request not in self._latents]
        if not wanted:
            return
        mine = self._parallel.share(wanted)
        made = []
        with self._progress.task(f"sampling {len(self._reference)} steps", len(mine)) as task:
            for request in mine:
                found = self._store.load(request)
                made.append(self._sample_full(request) if found is None else found)
                task.advance()
        self._latents |= dict(zip(wanted, self._parallel.gather_shared(made), strict=True))

    def _sample_full(self, request: Request) -> Tensor:
        latents = self._maker.denoise(request, self._reference).latents.float().cpu()
        self._store.save(request, latents)
        return latents
