"""The full-size model on one device: steps, share of the matrix ceiling, memory, autoencoder.

Weights and prompts are random: they do not change how long anything takes.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.speed.measuring import interleaved, machine, ratio
from benchmarks.speed.operations import StepWork
from benchmarks.speed.steps import GUIDANCE_SCALE, optimised
from benchmarks.speed.subjects import (
    RELEASED_VAE,
    ROPE_L_122,
    SMALL,
    SMALL_VAE,
    Subject,
    random_prompts,
    random_transformer,
    random_vae,
)
from osp_opt.base.shape import VideoShape
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.model.vae.tiling import Tiling
from osp_opt.system.device import Device

SHAPES = {
    "1x480p": VideoShape(1, 480, 640),
    "29x480p": VideoShape(29, 480, 640),
    "29x720p": VideoShape(29, 720, 1280),
    "93x720p": VideoShape(93, 720, 1280),
}
SMALL_SHAPES = {"5x32x32": VideoShape(5, 32, 32), "5x32x48": VideoShape(5, 32, 48)}
TEXT_TOKENS, PADDED = 300, 512  # the longer prompt's own tokens; the official padding
CEILING_SIZE = 8192  # rows and columns of the matrices whose product is the ceiling
RECORDED_STEPS = 100  # of a calibration video; decides how much of each prediction is kept


@dataclass(frozen=True)
class Rounds:
    """How often everything is run, in turns."""

    repeats: int
    warm_ups: int


def run(names: list[str], rounds: Rounds, small: bool, compiled: bool, device: Device) -> dict:
    """Measure every shape; ``small`` is a toy model in toy shapes, to see the script run."""
    shapes = SMALL_SHAPES if small else {name: SHAPES[name] for name in names}
    ceiling = matrix_ceiling(device, 512 if small else CEILING_SIZE)
    results = {
        name: measure(shape, ceiling, rounds, small, compiled, device)
        for name, shape in shapes.items()
    }
    return {
        "machine": machine(device),
        "toy_model": small,
        "compiled": compiled,
        "ceiling_operations_per_second": ceiling,
        "shapes": results,
    }


@torch.no_grad()
def matrix_ceiling(device: Device, size: int, repeats: int = 20) -> float:
    """Operations per second of a large square matrix product in the device's dtype (median)."""
    a, b = (
        torch.randn(size, size, device=device.torch_device, dtype=device.dtype) for _ in range(2)
    )
    out = torch.empty_like(a)
    times = interleaved({"product": lambda: torch.mm(a, b, out=out)}, device, repeats, warm_ups=5)
    return 2 * size**3 / times["product"].as_json()["median_seconds"]


def measure(
    shape: VideoShape, ceiling: float, rounds: Rounds, small: bool, compiled: bool, device: Device
) -> dict[str, Any]:
    """One shape: the transformer's steps, then the autoencoder."""
    config = SMALL if small else ROPE_L_122
    model = random_transformer(config, shape, device)
    model.fuse_qkv_projections()
    if device.attention != "native":
        model.set_attention_backend(device.attention)
    if compiled:
        model.compile_repeated_blocks()
    prompts = random_prompts(int(config["caption_channels"]), TEXT_TOKENS, PADDED, device)
    subject = Subject("full size", model, prompts, shape)
    result = denoising(subject, ceiling, rounds, device)
    tell(shape, result)
    del subject, model
    device.empty_cache()
    decoding = autoencoder(shape, rounds, small, device)
    tell(shape, decoding)
    return result | {"autoencoder": decoding}


def tell(shape: VideoShape, result: dict[str, Any]) -> None:
    """One line of what is known by now: a large shape takes minutes."""
    print(f"{shape}: {json.dumps(result)}", file=sys.stderr, flush=True)


def denoising(subject: Subject, ceiling: float, rounds: Rounds, device: Device) -> dict[str, Any]:
    """Seconds of an exact step, of a step that reuses blocks, and of one that is recorded."""
    layers = int(subject.model.config["num_layers"])
    # Reuses half the blocks at every second step, as a policy near 1.3x does.
    policy = CachePolicy.four_field(layers // 4, layers // 2, 0, 2)
    recorder = CalibrationRecorder(RECORDED_STEPS, layers, guidance_scale=GUIDANCE_SCALE)
    exact = optimised(subject)
    device.reset_peak_memory()
    exact()
    device.synchronize()
    peak = device.memory().peak
    cached, recorded = (
        optimised(subject, loops=BlockCache(policy)),
        optimised(subject, recorder=recorder),
    )
    count = {"cached": -1, "recorded": -1}

    def next_of(name: str) -> int:
        count[name] += 1
        return count[name]

    times = interleaved(
        {
            "exact": exact,
            "cache: full step": lambda: cached(next_of("cached")),
            "cache: reusing step": lambda: cached(next_of("cached")),
            "recorded": lambda: recorded(next_of("recorded") % RECORDED_STEPS),
        },
        device,
        rounds.repeats,
        rounds.warm_ups,
    )
    work = StepWork.of(subject.model.config, subject.shape.latent(), subject.prompts.longest)
    seconds = {name: each.as_json()["median_seconds"] for name, each in times.items()}
    return {
        "tokens": work.tokens,
        "text_tokens": work.text_tokens,
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "operations_per_step": work.total,
        "steps": {name: each.as_json() for name, each in times.items()},
        "share_of_ceiling": work.total / seconds["exact"] / ceiling,
        "recording_overhead": ratio(times["recorded"], times["exact"]) - 1,
        "hundred_steps_seconds": 100 * seconds["exact"],
        "fifty_steps_cached_seconds": 25
        * (seconds["cache: full step"] + seconds["cache: reusing step"]),
        "reused": f"{layers // 2} of {layers} blocks at every second step",
        "peak_bytes": peak,
    }


@torch.no_grad()
def autoencoder(shape: VideoShape, rounds: Rounds, small: bool, device: Device) -> dict[str, Any]:
    """Encode and decode in the official tiles, and the memory that decoding takes."""
    vae = random_vae({**RELEASED_VAE, **(SMALL_VAE if small else {})}, device)
    vae.enable_tiling(Tiling(sample_size=32, latent_size=4, overlap=0.5) if small else Tiling())
    size = (1, 3, shape.num_frames, shape.height, shape.width)
    video = torch.rand(size, device=device.torch_device, dtype=device.dtype) * 2 - 1
    latents = vae.encode(video).latent_dist.mode()
    device.reset_peak_memory()
    vae.decode(latents)
    device.synchronize()
    peak = device.memory().peak
    times = interleaved(
        {"encode": lambda: vae.encode(video), "decode": lambda: vae.decode(latents)},
        device,
        rounds.repeats,
        min(rounds.warm_ups, 1),
    )
    return {name: each.as_json() for name, each in times.items()} | {"decode_peak_bytes": peak}
