"""From model options to a pipeline on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from osp_opt.model.release import ModelDefaults, ModelFolders
from osp_opt.model.vae.tiling import Tiling
from osp_opt.options import SamplingOptions
from osp_opt.sampling.pipeline import OpenSoraPlanPipeline
from osp_opt.sampling.schedulers import make_scheduler
from osp_opt.system.device import Device
from osp_opt.system.precision import apply_precision

__all__ = ["LoadedModel", "load_pipeline", "release_text_encoder"]


@dataclass(frozen=True)
class LoadedModel:
    """A pipeline ready on its device, and what is known of its model.

    `fingerprint` is over configs and weights of transformer, autoencoder and (where it is a local
    folder) text encoder.
    """

    pipeline: OpenSoraPlanPipeline
    defaults: ModelDefaults
    fingerprint: str
    transformer_config: Mapping[str, Any]


def load_pipeline(options: SamplingOptions, device: Device) -> LoadedModel:
    """Load the model that the options name onto `device`, in its dtype and precision policy.

    With `offload` the autoencoder and the text encoder stay on the CPU, and whoever uses them moves
    them. Raises CheckpointError, or OptionError and DeviceError for an attention backend that
    cannot be used.
    """
    folders = ModelFolders.find(
        options.model_path,
        options.version,
        options.ae_path,
        options.text_encoder_name,
        options.cache_dir,
    )
    parts = folders.load(device.dtype, options.cache_dir, {})
    transformer, vae = parts["transformer"], parts["vae"]
    for part in (transformer, vae, parts["text_encoder"]):
        part.requires_grad_(False)
        if part is transformer or not options.offload:
            part.to(device.torch_device)
    apply_precision(vae, device.precision)
    if device.attention != "native":
        transformer.set_attention_backend(device.attention)
    if options.compile:
        transformer.compile_repeated_blocks()
    if options.save_memory:
        vae.enable_tiling(Tiling.small(options.tile_overlap_factor))
    elif options.enable_tiling:
        vae.enable_tiling(Tiling(overlap=options.tile_overlap_factor))
    config = dict(transformer.config)
    defaults = folders.model_defaults(config)
    scheduler = make_scheduler(options.sampler)
    pipeline = OpenSoraPlanPipeline(**parts, scheduler=scheduler, defaults=defaults)
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    return LoadedModel(pipeline, defaults, folders.fingerprint(), config)


def release_text_encoder(pipeline: OpenSoraPlanPipeline) -> None:
    """Drop the text encoder once all prompts are encoded: mT5-xxl holds 11 GB in bfloat16."""
    pipeline.text_encoder = None
