"""Under what conditions videos are timed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from osp_opt.system.device import Device

__all__ = ["conditions", "measured_by"]


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
        "dtype": device.dtype_name,
        "attention": device.attention,
        "compile": compiled,
        "branches": branches,
        "offloaded": offloaded,
        "versions": _versions(),
    }


def measured_by(how: Mapping[str, Any], device: Device, compiled: bool, tiling: Any) -> str:
    """Names everything that decides what is measured, for ledgers: a folder may outlive the weights
    it was made with, and hold what other options and devices made. `how` is the maker's.
    """
    about = {
        **how,
        "device": device.model,
        "versions": _versions(),
        "attention": device.attention,
        "compile": compiled,
        "tiling": tiling,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


@cache
def _versions() -> dict[str, str]:
    """Of the packages that compute: another one may be faster, or round differently."""
    return {name: version(name) for name in ("torch", "diffusers")}
