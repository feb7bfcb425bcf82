"""Videos on noise paths: the denoised prediction at any level, for recording and for descent.

x_s = x0 + s n_s with n_s unit normal from one Brownian path per video (coupled noise at level s),
which is not the path that made the video: x0 and its noise have to be independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from osp_opt.base.artifacts import file_inside, read_bytes, read_json
from osp_opt.base.errors import CalibrationError
from osp_opt.calibration import Calibration
from osp_opt.generate.maker import Request, VideoMaker
from osp_opt.generate.measurements import Measurements
from osp_opt.options import SearchStepsOptions
from osp_opt.sampling.denoiser import Conditions, GuidedDenoiser, Recorder
from osp_opt.sampling.noise import CoupledNoise
from osp_opt.sampling.schedule import TimestepSchedule, timestep_of
from osp_opt.search.steps.ays import CoordinateDescent, Interval, KlubSampler
from osp_opt.system.context import WorkerContext

__all__ = ["NoisePath", "PathSet", "calibrated_paths", "descend_on_paths"]

LATENTS_FILE = "latents.json"  # of videos encoded for a search; calibrate's own have a manifest
_MAX_LATENT_BYTES = 2**30


class NoisePath:
    """One video on its noise path. Latents [1 c t h w] are scaled, as the sampler leaves them."""

    def __init__(
        self,
        maker: VideoMaker,
        latents: Tensor,
        request: Request,
        *,
        guided: bool = True,
        recorder: Recorder | None = None,
    ) -> None:
        self._latents = latents.float()
        self._request = request
        self._device = maker.device.torch_device
        self._noise = CoupledNoise(request.seed, f"noising\0{request.prompt}", latents.shape)
        text = maker.embed(request.prompt)
        negative = text.negative if guided and maker.guided else None
        transformer = maker.pipeline.transformer
        with torch.no_grad():
            conditions = Conditions.encode(
                transformer, text.embeds, text.mask, negative, maker.sequential_guidance
            )
        self._denoiser = GuidedDenoiser(
            transformer, conditions, maker.guidance_scale, recorder=recorder
        )

    def digest(self) -> bytes:
        """Of what decides the path: the video, and the seed and prompt of its noise."""
        about = f"{self._request.seed}\0{self._request.prompt}\0".encode()
        return hashlib.sha256(about + self._latents.cpu().numpy().tobytes()).digest()

    def __call__(self, sigma: float, step: int = 0) -> Tensor:
        """D(x_s, s) at noise level `sigma`; `step` is what a recorder is told."""
        noise = self._noise.initial(self._latents.shape, sigma)
        x = (self._latents + sigma * noise).to(self._device)
        with torch.no_grad():
            return self._denoiser(x, sigma, timestep=float(timestep_of(sigma)), step=step)


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
    listed = folder / LATENTS_FILE
    if not listed.is_file():
        listed = folder / "manifest.json"
    manifest = read_json(listed, "list of calibrated videos")
    entries = manifest.get("videos") if isinstance(manifest, dict) else None
    if not isinstance(entries, list) or len(entries) != len(calibration.prompts):
        raise CalibrationError(f"{listed}: does not list the calibrated videos")
    paths = []
    wanted = min(options.monte_carlo_iters, len(entries))  # more are not asked for
    for entry in entries[:wanted]:
        name = entry.get("latents") if isinstance(entry, dict) else None
        path = file_inside(folder, name)
        if path is None or not isinstance(entry.get("seed"), int):
            raise CalibrationError(
                f"{listed}: latents {name!r:.80}: no file in the folder, or no seed"
            )
        latents = load_latents(path)
        if latents.shape != maker.latent_shape:
            raise CalibrationError(
                f"{path}: {list(latents.shape)}, expected {list(maker.latent_shape)}"
            )
        request = Request(str(entry.get("prompt", "")), entry["seed"])
        paths.append(NoisePath(maker, latents[None], request, guided=options.guided))
    videos = hashlib.sha256(b"".join(path.digest() for path in paths)).hexdigest()[:12]
    guided = "guided" if options.guided else "unguided"
    return PathSet(paths, f"{maker.loaded.fingerprint[:12]} {videos} {guided}")


def load_latents(path: Path) -> Tensor:
    """Finite float latents [c t h w]. Raises FileError or CalibrationError."""
    data = read_bytes(path, "latents file", _MAX_LATENT_BYTES)
    try:
        latents = load_tensors(data)["latents"]
    except (SafetensorError, KeyError) as error:
        raise CalibrationError(f"{path}: damaged; run osp-opt calibrate again") from error
    if latents.ndim != 4 or not torch.isfinite(latents).all():
        raise CalibrationError(f"{path}: not finite latents [c t h w]; calibrate again")
    return latents


def descend_on_paths(
    options: SearchStepsOptions, paths: PathSet, length: int, context: WorkerContext
) -> tuple[TimestepSchedule, int]:
    """Coordinate descent, candidates shared out over the ranks, every estimate in the ledger.

    Returns the schedule and the network evaluations made now (on all ranks).
    """
    measurements = Measurements(context.run_dir / "evaluations.jsonl", context)
    iterations, seed = options.monte_carlo_iters, options.seed
    sampler = KlubSampler(paths, len(paths.paths), iterations, seed)
    name = f"klub {paths.name} {iterations} samples seed {seed}"

    def cost_of(steps: list[Interval]) -> list[float]:
        keys = [f"{name} {high:.6f} {low:.6f}" for high, low in steps]
        found = measurements.of(keys, lambda i: {"klub": sampler(*steps[i])}, "")
        return [float(values["klub"]) for values in found]

    def report(steps: int, sweep: int, cost: float) -> None:
        context.progress.say(f"  {steps} steps, sweep {sweep + 1}: KLUB {cost:.4g}")

    schedule, _ = CoordinateDescent(
        cost_of,
        candidates=options.candidates,
        neighbour_type=options.neighbour_type,
        seed=options.seed,
        progress=report,
    ).search(length)
    made = sum(context.parallel.gather_objects(sampler.evaluations))
    return schedule, made
