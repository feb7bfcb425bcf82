"""osp-opt: make Open-Sora-Plan v1.2 sample faster, with proof that the videos stay the same.

The public names below are loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = MappingProxyType(
    {
        "BlockCache": "osp_opt.cache.runtime",
        "CachePolicy": "osp_opt.cache.policy",
        "Calibration": "osp_opt.calibration",
        "CausalVAEModel": "osp_opt.model.vae.autoencoder",
        "DiffusersPipeline": "osp_opt.pipelines.diffusers_pipeline",
        "OpenSoraPlanPipeline": "osp_opt.sampling.pipeline",
        "OpenSoraT2V": "osp_opt.model.transformer",
        "OspOptError": "osp_opt.base.errors",
        "TimestepSchedule": "osp_opt.sampling.schedule",
        "VideoShape": "osp_opt.base.shape",
        "apply_cache": "osp_opt.cache.hooks",
        "open_pipeline": "osp_opt.pipelines.diffusers_pipeline",
        "calibrate": "osp_opt.api",
        "search_cache": "osp_opt.api",
        "search_steps": "osp_opt.api",
    }
)

if TYPE_CHECKING:
    from osp_opt.api import calibrate, search_cache, search_steps
    from osp_opt.base.errors import OspOptError
    from osp_opt.base.shape import VideoShape
    from osp_opt.cache.hooks import apply_cache
    from osp_opt.cache.policy import CachePolicy
    from osp_opt.cache.runtime import BlockCache
    from osp_opt.calibration import Calibration
    from osp_opt.model.transformer import OpenSoraT2V
    from osp_opt.model.vae.autoencoder import CausalVAEModel
    from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline, open_pipeline
    from osp_opt.sampling.pipeline import OpenSoraPlanPipeline
    from osp_opt.sampling.schedule import TimestepSchedule

__all__ = [
    "BlockCache",
    "CachePolicy",
    "Calibration",
    "CausalVAEModel",
    "DiffusersPipeline",
    "OpenSoraPlanPipeline",
    "OpenSoraT2V",
    "OspOptError",
    "TimestepSchedule",
    "VideoShape",
    "__version__",
    "apply_cache",
    "calibrate",
    "open_pipeline",
    "search_cache",
    "search_steps",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
