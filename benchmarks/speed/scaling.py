"""How a step grows: time and memory against tokens, and what Ulysses sends, counted.

Every size runs in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.measuring import interleaved, machine
from benchmarks.speed.operations import StepWork, gather_elements, ulysses_elements
from benchmarks.speed.steps import optimised
from benchmarks.speed.subjects import SMALL, Subject, random_prompts, random_transformer
from osp_opt.base.shape import VideoShape
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.system.device import Device

SIZES = ((1, 128, 128), (5, 128, 128), (13, 128, 128), (29, 128, 128), (29, 192, 192))
LARGER_SIZES = ((29, 256, 256), (29, 384, 384), (29, 480, 480))
"""Frames, height and width: 64 to 7,200 tokens, two decades."""
TEXT_TOKENS = 64


@dataclass
class CountingSequence:
    """Stands for Ulysses on ``ranks`` ranks in the transformer, and counts what a rank sends.

    It exchanges nothing: what other ranks would send is a copy of this rank's own, so shapes and
    calls are the real ones and the result means nothing.
    """

    ranks: int
    sent: dict[str, int] = field(default_factory=dict)

    def split_tokens(self, tokens: Tensor) -> Tensor:
        return tokens.chunk(self.ranks, dim=1)[0].contiguous()

    def gather_tokens(self, tokens: Tensor) -> Tensor:
        self._count("gather", tokens.numel() * (self.ranks - 1))
        return tokens.repeat(1, self.ranks, 1)

    def scatter_heads(self, states: Tensor) -> Tensor:
        self._count("exchange", states.numel() * (self.ranks - 1) // self.ranks)
        return states.chunk(self.ranks, dim=2)[0].repeat(1, self.ranks, 1, 1)

    def gather_heads(self, states: Tensor) -> Tensor:
        self._count("exchange", states.numel() * (self.ranks - 1) // self.ranks)
        return states.chunk(self.ranks, dim=1)[0].repeat(1, 1, self.ranks, 1)

    def _count(self, kind: str, elements: int) -> None:
        self.sent[kind] = self.sent.get(kind, 0) + elements


def run(larger: bool, repeats: int, ranks: list[int], plot: Path | None) -> dict[str, Any]:
    """Every size's time and memory, fitted powers, and communication for every rank count."""
    sizes = [*SIZES, *(LARGER_SIZES if larger else ())]
    tasks = [(size, repeats) for size in sizes]
    # Forked before this process has computed anything, so a child's peak is its own.
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        points = pool.starmap(measure, tasks, chunksize=1)
    device = Device.open("cpu", dtype="float32")
    result = {
        "machine": machine(device),
        "model": SMALL,
        "points": points,
        "time_exponents": exponents(points, "median_seconds"),
        "cpu_time_exponents": exponents(points, "median_cpu_seconds"),
        "operation_exponents": exponents(points, "operations"),
        "memory_exponents": exponents(points, "step_bytes"),
        "communication": [communication(device, count) for count in ranks],
    }
    if plot is not None:
        draw(points, plot)
    return result


def measure(size: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Seconds of a guided step of this size, and the memory it needs beyond the weights."""
    device = Device.open("cpu", dtype="float32")
    subject = subject_of(VideoShape(*size), device)
    step = optimised(subject)
    before = device.memory().allocated or 0
    step()
    peak = device.memory().peak or 0
    times = interleaved({"step": step}, device, repeats)["step"]
    work = StepWork.of(subject.model.config, subject.shape.latent(), subject.prompts.longest)
    return {
        "shape": str(subject.shape),
        "tokens": work.tokens,
        "operations": work.total,
        "step_bytes": max(peak - before, 0),
        **times.as_json(),
    }


def subject_of(shape: VideoShape, device: Device) -> Subject:
    """The small model, made for this shape."""
    model: OpenSoraT2V = random_transformer(SMALL, shape, device)
    model.fuse_qkv_projections()
    prompts = random_prompts(int(SMALL["caption_channels"]), TEXT_TOKENS, TEXT_TOKENS, device)
    return Subject("small model", model, prompts, shape)


def exponents(points: list[dict[str, Any]], name: str) -> list[float]:
    """The local power of tokens with which ``name`` grows, between neighbouring sizes."""
    tokens = np.log([point["tokens"] for point in points])
    values = np.log([max(float(point[name]), 1e-12) for point in points])
    return [float(power) for power in np.diff(values) / np.diff(tokens)]


@torch.no_grad()
def communication(device: Device, ranks: int) -> dict[str, Any]:
    """Elements that one rank sends per step, counted in a real forward, and the least possible."""
    shape = VideoShape(29, 64, 64)
    config = {**SMALL, "num_attention_heads": 8}
    model = random_transformer(config, shape, device)
    prompts = random_prompts(int(config["caption_channels"]), TEXT_TOKENS, TEXT_TOKENS, device)
    text = model.encode_text(prompts.embeds, prompts.mask)
    latents = torch.zeros(2, *shape.latent_tensor(), device=device.torch_device)
    sequence = CountingSequence(ranks)
    model(latents.to(device.dtype), torch.tensor(500.0), text=text, sequence=sequence)
    work = StepWork.of(model.config, shape.latent(), prompts.longest)
    least = ulysses_elements(work, ranks)
    return {
        "ranks": ranks,
        "exchanged_elements": sequence.sent["exchange"],
        "least_elements": least,
        "over_least": sequence.sent["exchange"] / least,
        "gathered_elements": sequence.sent["gather"],
        "least_gathered_elements": gather_elements(work, ranks),
    }


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Time and memory against tokens, both axes logarithmic, with the counted operations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tokens = [point["tokens"] for point in points]
    seconds = [point["median_seconds"] for point in points]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    left.loglog(tokens, seconds, "o-", label="measured")
    scale = seconds[-1] / points[-1]["operations"]
    left.loglog(tokens, [p["operations"] * scale for p in points], ":", label="operations")
    left.set(xlabel="tokens", ylabel="seconds per guided step")
    left.legend()
    right.loglog(tokens, [max(p["step_bytes"], 1) / 2**20 for p in points], "o-")
    right.set(xlabel="tokens", ylabel="memory of a step beyond the weights (MiB)")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
