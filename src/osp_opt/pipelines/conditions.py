"""Under what conditions videos are timed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from osp_opt.system.device import Device

__all__ = ["conditions", "versions"]


def conditions(
    device: Device,
    *,
    layout: str,
    compiled: bool,
    branches: int | None,
    offloaded: str | None = None,
) -> dict[str, Any]:
    """As JSON values: speeds are compared where they agree (`generate.provenance`)."""
    return {
        "device": device.model,
        "layout": layout,
        "threads": torch.get_num_threads() if device.name == "cpu" else None,
        "dtype": str(device.dtype).removeprefix("torch."),
        "attention": device.attention,
        "compile": compiled,
        "branches": branches,
        "offloaded": offloaded,
        "versions": versions(),
    }


@cache
def versions() -> dict[str, str]:
    """Of the packages that compute: another one may be faster, or round differently."""
    return {name: version(name) for name in ("torch", "diffusers")}
