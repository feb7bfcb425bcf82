"""The bench itself: the model, the prompts, the baseline videos, and how a result is judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.size import Size
from benchmarks.work import multiply_adds
from osp_opt.base.ledger import TrialLedger
from osp_opt.base.progress import Progress
from osp_opt.base.samplers import MAX_STEPS
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.calibration import Calibration
from osp_opt.generate.references import LatentStore
from osp_opt.options import (
    CALIBRATION_FILE,
    CalibrateOptions,
    JobOptions,
    SampleOptions,
    SearchCacheOptions,
)
from osp_opt.pipelines.maker import Denoised, Request
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.quality.metrics import MAX_PSNR, mse, psnr, ssim
from osp_opt.run.folder import open_run
from osp_opt.run.worker import JOBS
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel
from osp_opt.tiny.checker import check
from osp_opt.tiny.prompts import load_prompts
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["Lab", "Listening"]

_BLACK_TO_WHITE = 255.0
CONVERGED = 8
"""Times the steps of the full length: a video that more steps hardly change (59 dB from there to
four times the full length on the bundled model)."""


class Listening(Progress):
    """Prints as usual and keeps the lines that a job said."""

    def __init__(self) -> None:
        super().__init__(0, interactive=False)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)
        super().say(f"    {text}")


class Lab:
    """The bundled model on this machine, with everything that was measured before.

    Prompts never serve twice: `calibration` calibrates, `verification` decides (inside the
    searches), `evaluation` judges. `model` holds options that name another model or sampler,
    `schedule` the steps that everything is compared with (default: even ones), `calibration` the
    folder of one that was made (default: it is made with those steps).
    """

    def __init__(
        self,
        work: Path,
        size: Size,
        seed: int,
        device: str = "auto",
        model: dict[str, Any] | None = None,
        schedule: TimestepSchedule | None = None,
        calibration: Path | None = None,
    ) -> None:
        self.size = size
        self.seed = seed
        self.device = Device.open(device)
        # What every command is told: which model (the bundled one unless given), where it runs.
        self.common: dict[str, Any] = {**(model or {}), "device": self.device.name, "seed": seed}
        options = SampleOptions(**self.common, workdir=work)
        self.said = Listening()
        context = WorkerContext(self.device, Parallel(), work, self.said)
        self.maker = VideoMaker(options, context)
        # Nothing measured with other weights, sizes or seeds is taken for this run's.
        self.name = f"{self.maker.loaded.fingerprint[:12]}-{size.name}{size.steps}-s{seed}"
        self.work = work / self.name
        self.ledger = TrialLedger(self.work / "measurements.jsonl")
        uniform = TimestepSchedule(TimestepSchedule.uniform(size.steps).timesteps)
        self.reference = uniform if schedule is None else schedule
        self._calibration = calibration
        self._stores = {
            1: LatentStore(self.work / "baseline", self.name),
            CONVERGED: LatentStore(self.work / "converged", self.name),
        }
        self._frames: dict[tuple[Request, int], np.ndarray[Any, Any]] = {}

    def judging(self, count: int) -> list[Request]:
        """The first fresh prompts; no search has seen them."""
        return [Request(prompt, self.seed) for prompt in load_prompts("evaluation")[:count]]

    def deciding(self, count: int) -> list[Request]:
        """Prompts that a search may decide with."""
        return [Request(prompt, self.seed) for prompt in load_prompts("verification")[:count]]

    def denoise(
        self,
        request: Request,
        schedule: TimestepSchedule,
        cache: Any = None,
        transformer: Any = None,
    ) -> Denoised:
        """One video, timed as `sample` times it; another transformer may stand in."""
        return self.maker.denoise(request, schedule, cache, transformer=transformer)

    def counted(
        self,
        request: Request,
        schedule: TimestepSchedule,
        cache: Any = None,
        transformer: Any = None,
    ) -> tuple[Tensor, float]:
        """Latents of one video and the multiply-adds of its blocks (see `multiply_adds`)."""
        runs = transformer or self.maker.pipeline.transformer
        with multiply_adds(getattr(runs, "model", runs)) as work:
            made = self.denoise(request, schedule, cache, transformer)
        return made.latents, work[0]

    def block_cache(self, policy: CachePolicy) -> BlockCache:
        """The runtime of a policy, as the commands make it."""
        return self.maker.block_cache(policy, SearchCacheOptions(**self.common, workdir=self.work))

    @cached_property
    def plain_work(self) -> float:
        """Multiply-adds of the uncached full length, in which all steps are alike."""
        steps = TimestepSchedule(self.reference.timesteps[:2])
        return self.counted(self.deciding(1)[0], steps)[1] / 2 * len(self.reference)

    def full(self, request: Request) -> np.ndarray[Any, Any]:
        """Frames of the uncached full-length video, sampled once and kept."""
        return self._decoded(request, 1)

    def converged(self, request: Request) -> np.ndarray[Any, Any]:
        """Frames of `CONVERGED` times as many uniform steps of the same noise, kept as well."""
        return self._decoded(request, CONVERGED)

    def full_latents(self, request: Request) -> Tensor:
        """Latents of the uncached full-length video, sampled once and kept."""
        return self._latents(request, 1)

    def _decoded(self, request: Request, finer: int) -> np.ndarray[Any, Any]:
        if (request, finer) not in self._frames:
            self._frames[request, finer] = self.maker.decode(self._latents(request, finer))
        return self._frames[request, finer]

    def _latents(self, request: Request, finer: int) -> Tensor:
        latents = self._stores[finer].load(request)
        if latents is None:
            latents = self.denoise(request, self._finer(finer)).latents.float().cpu()
            self._stores[finer].save(request, latents)
        return latents

    def _finer(self, finer: int) -> TimestepSchedule:
        """The steps that everything is compared with, or so many times as many even ones."""
        if finer == 1:
            return self.reference
        steps = min(finer * len(self.reference), MAX_STEPS)
        return TimestepSchedule(TimestepSchedule.uniform(steps).timesteps)

    def frame_error(self, latents: Tensor, request: Request) -> float:
        """Mean squared error of the frames against the full length's, in [0, 1]."""
        return mse(self.maker.decode(latents), self.full(request)) / _BLACK_TO_WHITE**2

    def judge(self, latents: Tensor, request: Request) -> dict[str, float]:
        """Raw frames against the full-length and the converged video's, and the checker's word."""
        frames, full = self.maker.decode(latents), self.full(request)
        return {
            "psnr": min(psnr(frames, full), MAX_PSNR),
            "mse": mse(frames, full) / _BLACK_TO_WHITE**2,
            "ssim": ssim(frames, full),
            "converged": min(psnr(frames, self.converged(request)), MAX_PSNR),
            **self.adherence(frames, request),
            **{f"full_{name}": value for name, value in self.adherence(full, request).items()},
        }

    def adherence(self, frames: np.ndarray[Any, Any], request: Request) -> dict[str, float]:
        """Share of the attributes that are as asked, and whether all are."""
        seen = check(frames, request.prompt).right()
        return {
            "right": sum(seen[name] for name in ATTRIBUTES) / len(ATTRIBUTES),
            "all_right": float(seen["all"]),
        }

    def maker_with(self, **changes: Any) -> VideoMaker:
        """The model with other sampling options."""
        options = SampleOptions(**self.common, workdir=self.work, **changes)
        return VideoMaker(options, WorkerContext(self.device, Parallel(), self.work, self.said))

    def distances(
        self, maker: VideoMaker, request: Request, schedules: Mapping[str, TimestepSchedule]
    ) -> dict[str, float]:
        """PSNR of every schedule's video to the full length, all made by `maker`."""
        full = maker.decode(maker.denoise(request, self.reference).latents)
        return {
            name: min(psnr(maker.decode(maker.denoise(request, s).latents), full), MAX_PSNR)
            for name, s in schedules.items()
        }

    def run_job(self, options: JobOptions) -> list[str]:
        """Run a command of osp-opt as its worker would; the lines it said. Resumes by itself."""
        with open_run(options.model_copy(update={"overwrite": True})) as run:
            said = Listening()
            context = WorkerContext(self.device, Parallel(), run.folder, said)
            JOBS[options.command]()(options, context)
            return said.lines

    @cached_property
    def calibration_folder(self) -> Path:
        """What `osp-opt calibrate` leaves, made at the first need."""
        if self._calibration is not None:
            return self._calibration
        options = CalibrateOptions(
            **self.common,
            workdir=self.work,
            steps=self.size.steps,
            text_prompt=load_prompts("calibration")[: self.size.calibration],
        )
        if not (options.out_dir / CALIBRATION_FILE).is_file():
            self.run_job(options)
        return options.out_dir

    @cached_property
    def calibration(self) -> Calibration:
        """Its statistics."""
        return Calibration.load(self.calibration_folder / CALIBRATION_FILE)

    def remembered(self, key: str, measure: Any) -> dict[str, Any]:
        """The values under `key`, measured (and kept at once) when they are not there yet."""
        held = self.ledger.get(key)
        if held is None:
            held = measure()
            self.ledger.add(key, held)
        return held


def column(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    """One value of every row."""
    return [float(row[name]) for row in rows]
