"""Decoding by the bundled autoencoder: number formats and memory layouts, their time and error."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from benchmarks.speed.measuring import interleaved, machine, ratio
from osp_opt.base.shape import VideoShape
from osp_opt.model.release import load_vae
from osp_opt.model.vae.autoencoder import CausalVAEModel
from osp_opt.quality.metrics import psnr
from osp_opt.system.device import Device
from osp_opt.tiny.prompts import BUNDLED
from tools.train_tiny.clips import render_clips
from tools.train_tiny.prompts import split_specs

SHAPE = VideoShape(29, 64, 64)


@torch.no_grad()
def run(repeats: int, device: Device, shape: VideoShape = SHAPE) -> dict[str, Any]:
    """Every way on the same latents: seconds, and PSNR of its uint8 video against float32's."""
    exact = load_vae(BUNDLED / "vae", torch.float32).requires_grad_(False)
    exact.to(device.torch_device)
    latents = exact.encode(clip(shape).to(device.torch_device)).latent_dist.mode()
    half, last = copy.deepcopy(exact).bfloat16(), copy.deepcopy(exact)
    for module in last.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.to(memory_format=torch.channels_last_3d)
        elif isinstance(module, torch.nn.Conv2d):
            module.to(memory_format=torch.channels_last)
    by_layout = latents.to(memory_format=torch.channels_last_3d)
    ways: dict[str, tuple[CausalVAEModel, Tensor]] = {
        "float32": (exact, latents),
        "float32, channels last": (last, by_layout),
        "bfloat16": (half, latents.bfloat16()),
    }
    times = interleaved(
        {name: lambda way=way: way[0].decode(way[1]).sample for name, way in ways.items()},
        device,
        repeats,
    )
    expected = pixels(exact.decode(latents).sample)
    rows = {}
    for name, (vae, z) in ways.items():
        found = pixels(vae.decode(z).sample)
        rows[name] = {
            **times[name].as_json(),
            "speedup": ratio(times["float32"], times[name]),
            "cpu_speedup": ratio(times["float32"], times[name], "cpu"),
            "psnr_db": None if torch.equal(found, expected) else psnr(found, expected),
        }
    return {"machine": machine(device), "shape": str(shape), "ways": rows}


def clip(shape: VideoShape) -> Tensor:
    """A procedural clip that no model was trained on, ``[1 3 t h w]`` in [-1, 1]."""
    held_out = split_specs()[1][:1]
    size = shape.num_frames, shape.height, shape.width
    video, _ = render_clips(held_out, np.random.default_rng(0), *size)
    return video


def pixels(video: Tensor) -> Tensor:
    """uint8 ``[t h w c]`` as it would be written."""
    levels = ((video.float() / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).cpu()
    return rearrange(levels, "1 c t h w -> t h w c")
