"""Where the parts of a pipeline lie, how it decodes, and whether its blocks are compiled.

By what diffusers itself offers, looked up in the pipeline. What our hooks do stays outside of all
of it: blocks are compiled inside them, and offloading fetches what runs inside them.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from osp_opt.base.errors import OptionError
from osp_opt.cache.registries import registered_blocks
from osp_opt.options import SamplingOptions
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline
from osp_opt.system.device import Device

__all__ = ["compile_blocks", "offload", "place"]

_ROOM = 0.7  # of a device's memory, for weights; the rest is for what is computed with them


def place(opened: DiffusersPipeline, options: SamplingOptions, device: Device) -> str | None:
    """Put a pipeline that was loaded into host memory where it is to compute, as options say.

    Returns how it is kept off the device ("parts" or "blocks"; None: not at all). Raises
    OptionError where the pipeline does not offer what they ask for.
    """
    pipe = opened.pipe
    if options.save_memory or options.enable_tiling:
        _tile(pipe, "--save-memory" if options.save_memory else "--enable-tiling")
    if options.save_memory and hasattr(pipe.vae, "use_slicing"):
        pipe.vae.enable_slicing()
    if options.compile:
        for transformer in opened.transformers.values():
            compile_blocks(transformer)
    if options.offload:
        return offload(pipe, device.torch_device, device.memory().total)
    pipe.to(device.torch_device)
    return None


def offload(pipe: Any, device: torch.device, memory: int | None) -> str:
    """Keep the parts of `pipe` in host memory while they are not in use.

    Where its largest part does not fit into the `memory` of the device (bytes; None: not known),
    the blocks of every part are fetched one by one. Raises OptionError for a pipeline that does
    not say in which order its parts run.
    """
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    largest = max(sum(t.numel() * t.itemsize for t in part.state_dict().values()) for part in parts)
    if memory is not None and largest > _ROOM * memory:
        pipe.enable_group_offload(device, offload_type="block_level", num_blocks_per_group=1)
        return "blocks"
    if pipe.model_cpu_offload_seq is None:
        raise OptionError(
            f"--offload: {type(pipe).__name__} does not say in which order its parts run "
            "(model_cpu_offload_seq); leave it out"
        )
    pipe.enable_model_cpu_offload(device=device)
    return "parts"


def compile_blocks(transformer: nn.Module, **how: Any) -> None:
    """Compile what its registered blocks compute, once for each kind of block; `how` goes to
    `torch.compile`. Hooks of blocks, whose decisions are Python, stay outside.
    """
    compiled: dict[type[nn.Module], Any] = {}
    for block in registered_blocks(transformer):
        kind = type(block)
        if kind not in compiled:
            compiled[kind] = torch.compile(kind.forward, **how)
        block.forward = MethodType(compiled[kind], block)


def _tile(pipe: Any, flag: str) -> None:
    vae = getattr(pipe, "vae", None)
    if not hasattr(vae, "use_tiling"):  # how diffusers' autoencoders say that they can
        raise OptionError(
            f"{flag}: the autoencoder of {type(pipe).__name__} ({type(vae).__name__}) cannot "
            "decode in tiles; leave it out"
        )
    pipe.vae.enable_tiling()
