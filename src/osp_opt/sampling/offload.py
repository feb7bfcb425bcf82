"""Where a model computes, which offloading may keep apart from where its weights are."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.hooks.group_offloading import _get_group_onload_device
from torch import nn

__all__ = ["execution_device"]


def execution_device(model: Any) -> torch.device:
    """The device on which `model` computes: what its offloading hooks say, else its weights'."""
    if isinstance(model, nn.Module):
        try:
            return torch.device(_get_group_onload_device(model))
        except ValueError:  # how diffusers says that no group offloading is in force
            pass
        for module in model.modules():  # accelerate's model and sequential offloading
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
    found: torch.device = model.device
    return found
