"""Attention kernels at the released model's sizes: their time and their error.

Self-attention of both guidance branches of one block: ``[2 n 24 96]`` queries, keys and values.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from benchmarks.speed.full_size import SHAPES
from benchmarks.speed.measuring import interleaved, machine, ratio
from benchmarks.speed.operations import StepWork
from benchmarks.speed.predict import released_config
from benchmarks.speed.subjects import ROPE_L_122
from osp_opt.base.errors import OspOptError
from osp_opt.system.device import Device

BACKENDS = ("native", "_native_flash", "_native_cudnn", "_native_efficient")
CHECKED = 128  # queries whose result is compared with float32's, written out


@torch.no_grad()
def run(names: list[str], repeats: int, device: Device, tokens: int | None = None) -> dict:
    """Every backend that runs here, on the tokens of each shape (or on ``tokens``)."""
    sizes = {
        name: tokens or StepWork.of(released_config(), SHAPES[name].latent(), 1).tokens
        for name in names
    }
    return {
        "machine": machine(device),
        "sizes": {name: measure(n, repeats, device) for name, n in sizes.items()},
    }


def measure(tokens: int, repeats: int, device: Device) -> dict[str, Any]:
    """Seconds, operations per second, speed-up over ``native``, and error as a share of the rms."""
    size = (2, tokens, ROPE_L_122["num_attention_heads"], ROPE_L_122["attention_head_dim"])
    device.manual_seed(0)
    q, k, v = (torch.randn(size, device=device.torch_device, dtype=device.dtype) for _ in range(3))
    found, refused = {}, {}
    for name in BACKENDS:
        try:
            found[name] = error(dispatch_attention_fn(q, k, v, backend=name), q, k, v)
        except (RuntimeError, ValueError, OspOptError) as problem:
            refused[name] = str(problem).strip().partition("\n")[0]
    times = interleaved(
        {name: lambda name=name: dispatch_attention_fn(q, k, v, backend=name) for name in found},
        device,
        repeats,
    )
    batch, n, heads, width = size
    operations = 4 * batch * n * n * heads * width
    return {
        "tokens": tokens,
        "backends": {
            name: times[name].as_json()
            | {
                "operations_per_second": operations / times[name].as_json()["median_seconds"],
                "speedup": ratio(times["native"], times[name]),
                "error": found[name],
            }
            for name in found
        },
        "refused": refused,
    }


def error(result: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """Root mean square error against softmax(q k' / sqrt(width)) v in float32, for some queries."""
    q, k, v = (x.float().transpose(1, 2) for x in (q[:, :CHECKED], k, v))
    expected = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    difference = result[:, :CHECKED].float().transpose(1, 2) - expected
    return float(difference.square().mean().sqrt() / expected.square().mean().sqrt())
