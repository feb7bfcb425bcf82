"""Pipelines that somebody else loaded, as a `Maker`: what the functions of Python are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from osp_opt.base.errors import OptionError
from osp_opt.options import SamplingOptions
from osp_opt.pipelines.diffusers_maker import PipelineMaker
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline
from osp_opt.pipelines.digest import parameters_digest
from osp_opt.pipelines.load import LoadedModel
from osp_opt.pipelines.maker import Maker
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.sampling.offload import execution_device
from osp_opt.sampling.pipeline import OpenSoraPlanPipeline
from osp_opt.system.context import WorkerContext

__all__ = ["AnyPipeline", "InMemory", "in_memory", "without_model"]

AnyPipeline = OpenSoraPlanPipeline | DiffusersPipeline | DiffusionPipeline

_IN_MEMORY = "a pipeline in memory"
_PLACING = frozenset({"device", "dtype", "attention", "compile", "offload", "enable_tiling"})


@dataclass(frozen=True)
class InMemory:
    """A loaded pipeline.

    named: the option that says what model it is. decided: those that loading has decided already.
    device, dtype: where and in what it computes. maker: makes videos with it, as options say.
    """

    named: dict[str, str]
    decided: frozenset[str]
    device: torch.device
    dtype: torch.dtype
    maker: Callable[[SamplingOptions, WorkerContext], Maker]


def in_memory(pipe: AnyPipeline) -> InMemory:
    """Open-Sora-Plan's, or a text-to-video pipeline of diffusers, as it is or opened.

    Raises OptionError for what is no pipeline, and for a pipeline that cannot be driven what
    `DiffusersPipeline` raises.
    """
    if isinstance(pipe, OpenSoraPlanPipeline):
        parts = {"transformer": pipe.transformer, "vae": pipe.vae}
        known = pipe.fingerprint or parameters_digest(parts)
        model = LoadedModel(pipe, pipe.defaults, known, dict(pipe.transformer.config))
        return InMemory(
            {"model_path": _IN_MEMORY},
            _PLACING,
            pipe.transformer.device,
            pipe.transformer.dtype,
            lambda options, context: VideoMaker(options, context, model),
        )
    if isinstance(pipe, DiffusionPipeline):
        pipe = DiffusersPipeline(pipe)
    if not isinstance(pipe, DiffusersPipeline):
        raise OptionError(f"pipe: a {type(pipe).__name__}; give a loaded text-to-video pipeline")
    opened, transformer = pipe, next(iter(pipe.transformers.values()))
    return InMemory(
        {"pipeline": _IN_MEMORY},
        _PLACING | {"save_memory"},
        execution_device(transformer),
        next(p.dtype for p in transformer.parameters() if p.is_floating_point()),
        lambda options, context: PipelineMaker(options, context, opened),
    )


def without_model(metadata: Mapping[str, Any]) -> dict[str, str]:
    """`InMemory.named` of the model of a calibration with this `metadata`, which is not at hand.

    Raises OptionError where a search cannot do without it.
    """
    if "pipeline" in metadata:
        raise OptionError(
            f"pipe: a schedule has to beat the own steps of the {metadata['pipeline']}, "
            "which only it knows; give it"
        )
    return {"model_path": _IN_MEMORY}
