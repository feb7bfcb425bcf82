"""From model options to a pipeline on a device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from osp_opt.model.release import BUNDLED, ModelDefaults, ModelFolders, load_transformer, load_vae
from osp_opt.model.text.encoder import load_text_encoder, load_tokenizer
from osp_opt.model.vae.tiling import Tiling
from osp_opt.sampling.pipeline import OpenSoraPlanPipeline
from osp_opt.sampling.schedulers import SAMPLERS, make_scheduler
from osp_opt.system.device import Device
from osp_opt.system.precision import apply_precision

if TYPE_CHECKING:
    from osp_opt.options import ModelOptions

__all__ = [
    "BUNDLED",
    "LoadedModel",
    "ModelDefaults",
    "ModelFolders",
    "load_pipeline",
    "release_text_encoder",
]


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


def load_pipeline(model: ModelOptions, device: Device) -> LoadedModel:
    """Load the model that the options name onto `device`, in its dtype and precision policy.

    Options beyond ModelOptions are used where present: `attention`, `compile`, `enable_tiling`,
    `tile_overlap_factor`, `save_memory`, `sampler`, `offload` (autoencoder and text encoder then
    stay on the CPU, and whoever uses them moves them). Raises CheckpointError, or OptionError and
    DeviceError for an attention backend that cannot be used.
    """
    folders = ModelFolders.find(model)
    cache = model.cache_dir
    transformer = load_transformer(folders.transformer, device.dtype)
    vae = load_vae(folders.vae, device.dtype)
    text_encoder = load_text_encoder(folders.text_encoder, device.dtype, cache)
    tokenizer = load_tokenizer(folders.text_encoder, cache)
    parts: list[Any] = [transformer, vae, text_encoder]
    for part in parts:
        part.requires_grad_(False)
        if part is transformer or not getattr(model, "offload", False):
            part.to(device.torch_device)
    apply_precision(vae, device.precision)
    _configure(model, device, transformer, vae)
    config = dict(transformer.config)
    defaults = folders.model_defaults(config)
    pipeline = OpenSoraPlanPipeline(
        tokenizer,
        text_encoder,
        vae,
        transformer,
        make_scheduler(getattr(model, "sampler", SAMPLERS[0])),
        defaults,
    )
    pipeline.set_progress_bar_config(disable=True)  # type: ignore[no-untyped-call]
    return LoadedModel(pipeline, defaults, folders.fingerprint(), config)


def _configure(options: Any, device: Device, transformer: Any, vae: Any) -> None:
    transformer.fuse_qkv_projections()  # before compiling, which looks at what there is
    if device.attention != "native":
        transformer.set_attention_backend(device.attention)
    if getattr(options, "compile", False):
        transformer.compile_repeated_blocks()
    overlap = getattr(options, "tile_overlap_factor", Tiling.overlap)
    if getattr(options, "save_memory", False):
        vae.enable_tiling(Tiling.small(overlap))
    elif getattr(options, "enable_tiling", False):
        vae.enable_tiling(Tiling(overlap=overlap))


def release_text_encoder(pipeline: OpenSoraPlanPipeline) -> None:
    """Drop the text encoder once all prompts are encoded: mT5-xxl holds 11 GB in bfloat16."""
    pipeline.text_encoder = None
