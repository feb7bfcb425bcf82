"""Videos on noise paths: the denoised prediction at any level, for recording and for descent.

x_s = x0 + s n_s with n_s unit normal from one Brownian path per video (coupled noise at level s),
which is not the path that made the video: x0 and its noise have to be independent.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from osp_opt.base.artifacts import file_inside, read_json
from osp_opt.base.errors import CalibrationError
from osp_opt.calibration.statistics import Calibration
from osp_opt.generate.manifest import read_takes
from osp_opt.pipelines.maker import Request
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.sampling.denoiser import Conditions, GuidedDenoiser, Recorder
from osp_opt.sampling.noise import CoupledNoise, noise_key
from osp_opt.sampling.schedule import timestep_of

__all__ = ["LATENTS_FILE", "NoisePath", "latents_of"]

LATENTS_FILE = "latents.json"  # of videos encoded for a search; calibrate's own have a manifest


class NoisePath:
    """One video on its noise path. Latents [1 c t h w] are scaled, as the sampler leaves them.

    `transformer` may stand in for the loaded one, such as one that is spread over ranks.
    """

    def __init__(
        self,
        maker: VideoMaker,
        latents: Tensor,
        request: Request,
        *,
        guided: bool = True,
        recorder: Recorder | None = None,
        transformer: Any = None,
    ) -> None:
        self._latents = latents.float()
        self._request = request
        self._device = maker.device.torch_device
        self._noise = CoupledNoise(
            request.seed, f"noising\0{noise_key(request.prompt)}", latents.shape
        )
        text = maker.embed(request.prompt)
        negative = text.negative if guided and maker.guided else None
        transformer = maker.pipeline.transformer if transformer is None else transformer
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


def latents_of(calibration: Calibration, folder: Path) -> list[tuple[Request, Path]]:
    """The final latents' files of a calibration's videos, in its order.

    Raises CalibrationError where one is missing.
    """
    known = _latents_in(folder)
    wanted = [
        Request(prompt, seed)
        for prompt, seed in zip(calibration.prompts, calibration.seeds, strict=True)
    ]
    for request in wanted:
        if request not in known:
            raise CalibrationError(
                f"{folder}: the latents of {request.prompt!r:.60} are gone; calibrate again"
            )
    return [(request, known[request]) for request in wanted]


def _latents_in(folder: Path) -> dict[Request, Path]:
    listed = folder / LATENTS_FILE
    if not listed.is_file():
        return {
            Request(video.prompt or "", video.seed or 0): video.latents
            for take in read_takes(folder)
            for video in take.videos
            if video.latents is not None
        }
    content = read_json(listed, "list of calibrated videos")
    entries = content.get("videos") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise CalibrationError(f"{listed}: does not list the calibrated videos")
    found = {}
    for entry in entries:
        name = entry.get("latents") if isinstance(entry, dict) else None
        path = file_inside(folder, name)
        if path is None or not isinstance(entry.get("seed"), int):
            raise CalibrationError(
                f"{listed}: latents {name!r:.80}: no file in the folder, or no seed"
            )
        found[Request(str(entry.get("prompt", "")), entry["seed"])] = path
    return found
