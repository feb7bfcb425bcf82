"""The denoising loop never reads a value back from the device.

The meta device holds no values, so whatever asks for one raises: a model there shows it on a CPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from osp_opt.base.shape import VideoShape
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.model.release import load_transformer
from osp_opt.model.transformer import OpenSoraT2V, TextContext
from osp_opt.sampling.denoiser import Conditions, GuidedDenoiser
from osp_opt.sampling.noise import CoupledNoise
from osp_opt.sampling.samplers import sample_euler_ancestral, sample_with_scheduler
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import make_scheduler, set_schedule

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer" / "main"
LATENT = VideoShape(5, 16, 32).latent_tensor()
SCHEDULE = TimestepSchedule((999.0, 800.5, 400.0, 20.0))


@pytest.fixture(scope="module")
def model() -> OpenSoraT2V:
    return load_transformer(GOLDEN).requires_grad_(False)


@pytest.fixture(scope="module")
def conditions(model: OpenSoraT2V) -> Conditions:
    """A prompt with a mask, encoded where values exist (it waits, once per prompt)."""
    mask = (torch.arange(12) < torch.tensor([[5], [9]])).long()
    text = model.encode_text(torch.ones(2, 12, model.config.caption_channels), mask)
    assert text.mask is not None
    moved = TextContext(text.embeds.to("meta"), text.mask.to("meta"))
    return Conditions({"both": moved}, guided=True)


def denoiser(model: OpenSoraT2V, conditions: Conditions, cached: bool) -> GuidedDenoiser:
    cache = BlockCache(CachePolicy.four_field(1, 2, 0, 2)) if cached else None
    return GuidedDenoiser(model, conditions, 3.0, cache, timesteps=SCHEDULE.timesteps)


def test_the_meta_device_catches_a_wait() -> None:
    with pytest.raises(RuntimeError):
        bool(torch.ones(2, device="meta").all())


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("cached", [False, True])
def test_the_default_sampler_never_waits(
    model: OpenSoraT2V, conditions: Conditions, cached: bool, fused: bool
) -> None:
    there = load_transformer(GOLDEN).requires_grad_(False)
    if fused:
        there.fuse_qkv_projections()
    there.to("meta")
    x = torch.empty(1, *LATENT, device="meta")
    noise = CoupledNoise(1, "a cat", LATENT)
    noise.initial((1, *LATENT), float(SCHEDULE.sigmas[0]))
    seen: list[Tensor] = []
    result = sample_euler_ancestral(
        denoiser(there, conditions, cached), x, SCHEDULE, noise, lambda *step: seen.append(step[2])
    )
    assert result.shape == (1, *LATENT)
    assert len(seen) == len(SCHEDULE)


def test_recording_waits_for_its_result_only(model: OpenSoraT2V, conditions: Conditions) -> None:
    there = load_transformer(GOLDEN).requires_grad_(False).to("meta")
    steps, elements = len(SCHEDULE), 100  # fewer than the latents have: some are picked
    recorder = CalibrationRecorder(
        steps,
        there.config.num_layers,
        guidance_scale=3.0,
        max_tokens=5,
        max_latent_bytes=4 * steps * elements,
    )
    recording = GuidedDenoiser(
        there, conditions, 3.0, None, timesteps=SCHEDULE.timesteps, recorder=recorder
    )
    noise = CoupledNoise(1, "a cat", LATENT)
    noise.initial((1, *LATENT), float(SCHEDULE.sigmas[0]))
    sample_euler_ancestral(recording, torch.empty(1, *LATENT, device="meta"), SCHEDULE, noise)
    with pytest.raises((RuntimeError, NotImplementedError)):
        recorder.result()


@pytest.mark.parametrize("name", ["EulerDiscrete", "DDPM", "DPMSolverMultistep"])
def test_schedulers_never_wait(model: OpenSoraT2V, conditions: Conditions, name: str) -> None:
    there = load_transformer(GOLDEN).requires_grad_(False).to("meta")
    scheduler = make_scheduler(name)
    set_schedule(scheduler, SCHEDULE)
    x = torch.empty(1, *LATENT, device="meta")
    noise = CoupledNoise(1, "a cat", LATENT)
    noise.initial((1, *LATENT), float(SCHEDULE.sigmas[0]))
    predict = denoiser(there, conditions, False).predict_noise
    assert sample_with_scheduler(scheduler, predict, x, noise).device.type == "meta"
