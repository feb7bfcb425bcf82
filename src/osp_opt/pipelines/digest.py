"""By what a pipeline is known that was put together in memory: its files are not at hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

__all__ = ["parameters_digest"]

_HASHED = 1024  # values of each parameter that tell one model from another


def parameters_digest(components: Mapping[str, Any], *configs: Mapping[str, Any]) -> str:
    """SHA-256 (hex) over names, shapes and some values of all parameters of the components, and
    settings of diffusers' `configs`. (Of parameters that offloading holds elsewhere, no values.)
    """
    digest = hashlib.sha256()
    for part, module in components.items():
        tensors = module.state_dict() if isinstance(module, nn.Module) else {}
        for name, tensor in tensors.items():
            digest.update(f"{part} {name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            if not tensor.is_meta:
                some = tensor.detach().flatten()[:_HASHED].to("cpu", torch.float32)
                digest.update(some.contiguous().numpy().tobytes())
    for config in configs:
        kept = {name: value for name, value in config.items() if not name.startswith("_")}
        digest.update(json.dumps(kept, sort_keys=True, default=repr).encode())
    return digest.hexdigest()
