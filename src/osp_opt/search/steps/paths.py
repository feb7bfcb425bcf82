"""Coordinate descent on the noise paths of calibrated videos (--method ays)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from osp_opt.base.errors import CalibrationError, OptionError
from osp_opt.calibration import Calibration
from osp_opt.calibration.paths import NoisePath, latents_of
from osp_opt.calibration.source import Source
from osp_opt.generate.measurements import Measurements
from osp_opt.generate.references import load_latents
from osp_opt.options import SearchStepsOptions
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.ays import CoordinateDescent, Interval, KlubSampler
from osp_opt.system.context import WorkerContext

__all__ = ["PathSet", "calibrated_paths", "descend_on_paths"]


@dataclass(frozen=True)
class PathSet:
    """Several videos' paths as the denoiser that Align Your Steps asks."""

    paths: Sequence[NoisePath]
    name: str  # of the model and videos, for the ledger

    def __call__(self, video: int, sigma: float) -> Tensor:
        return self.paths[video](sigma)


def calibrated_paths(
    options: SearchStepsOptions, maker: VideoMaker, calibration: Calibration, folder: Path
) -> PathSet:
    """The paths of a calibration folder's videos, from their final latents.

    Raises FileError or CalibrationError when latents are missing or are not this calibration's.
    """
    paths = []
    wanted = options.monte_carlo_iters  # more are not asked for
    for request, path in latents_of(calibration, folder)[:wanted]:
        latents = load_latents(path)
        if latents.shape != maker.latent_shape:
            raise CalibrationError(
                f"{path}: {list(latents.shape)}, expected {list(maker.latent_shape)}"
            )
        paths.append(NoisePath(maker, latents[None], request, guided=options.guided))
    videos = hashlib.sha256(b"".join(path.digest() for path in paths)).hexdigest()[:12]
    guided = "guided" if options.guided else "unguided"
    return PathSet(paths, f"{maker.loaded.fingerprint[:12]} {videos} {guided}")


def descend_on_paths(
    options: SearchStepsOptions,
    source: Source[SearchStepsOptions],
    length: int,
    context: WorkerContext,
) -> tuple[TimestepSchedule, int]:
    """Align Your Steps on a source's videos: coordinate descent, candidates shared out over the
    ranks, every estimate in the ledger.

    Returns the schedule and the network evaluations made now (on all ranks).
    """
    maker = source.maker()
    if not isinstance(maker, VideoMaker):
        raise OptionError("--method ays: is for Open-Sora-Plan's models; use --method dp")
    paths = calibrated_paths(options, maker, source.calibration, source.folder)
    measurements = Measurements(context.run_dir / "evaluations.jsonl", context)
    iterations, seed = options.monte_carlo_iters, options.seed
    sampler = KlubSampler(paths, len(paths.paths), iterations, seed)
    about = {"what": "klub", "of": paths.name, "samples": iterations, "seed": seed}

    def cost_of(steps: list[Interval]) -> list[float]:
        keys = [{**about, "high": round(high, 6), "low": round(low, 6)} for high, low in steps]
        found = measurements.of(keys, lambda i: {"klub": sampler(*steps[i])}, "")
        return [float(values["klub"]) for values in found]

    def report(steps: int, sweep: int, cost: float) -> None:
        context.progress.detail(f"  {steps} steps, sweep {sweep + 1}: KLUB {cost:.4g}")

    schedule, _ = CoordinateDescent(
        cost_of,
        candidates=options.candidates,
        neighbour_type=options.neighbour_type,
        seed=options.seed,
        progress=report,
    ).search(length)
    made = sum(context.parallel.gather_objects(sampler.evaluations))
    return schedule, made
