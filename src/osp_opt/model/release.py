"""A released model on disk: where its parts lie, and what it is sampled with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from osp_opt.base.artifacts import read_json
from osp_opt.base.errors import CheckpointError, file_errors_as
from osp_opt.base.shape import VideoShape, trained_shape
from osp_opt.model.checkpoint import load_model, model_fingerprint, resolve_folder
from osp_opt.model.folders import local_transformer, transformer_in
from osp_opt.model.text.captions import MAX_SEQUENCE_LENGTH, NEGATIVE_PROMPT, POSITIVE_TEMPLATE
from osp_opt.model.text.encoder import load_text_encoder, load_tokenizer
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.model.vae.autoencoder import CausalVAEModel
from osp_opt.tiny.prompts import BUNDLED

DEFAULTS_FILE = "defaults.json"
OFFICIAL_TEXT_ENCODER = "google/mt5-xxl"


@dataclass(frozen=True)
class ModelDefaults:
    """What a model is sampled with where the options leave it open.

    `prompt_template` holds one {} for the prompt; `fps` is in frames per second.
    """

    guidance_scale: float = 7.5
    negative_prompt: str = NEGATIVE_PROMPT
    prompt_template: str = POSITIVE_TEMPLATE
    max_sequence_length: int = MAX_SEQUENCE_LENGTH
    num_frames: int = 29
    height: int = 480
    width: int = 640
    fps: float = 24.0

    @classmethod
    def official(cls, transformer_config: Mapping[str, Any]) -> ModelDefaults:
        """Those of the official sampling scripts, at the size the transformer was trained for."""
        shape = trained_shape(transformer_config)
        return cls(num_frames=shape.num_frames, height=shape.height, width=shape.width)

    def shape(self, num_frames: int | None, height: int | None, width: int | None) -> VideoShape:
        """What was asked for; what is None, as it is here. Raises ShapeError."""
        return VideoShape(
            self.num_frames if num_frames is None else num_frames,
            self.height if height is None else height,
            self.width if width is None else width,
        )

    def updated(self, file: Path) -> ModelDefaults:
        """With the values of a defaults.json. Raises CheckpointError for a wrong one."""
        with file_errors_as(CheckpointError):
            values = read_json(file, "model defaults")
        if not isinstance(values, dict):
            raise CheckpointError(f"{file}: not a JSON object")
        known = {field.name: type(field.default) for field in fields(self)}
        for key, value in values.items():
            wanted = known.get(key)
            if wanted is None:
                raise CheckpointError(f"{file}: unknown key {key!r}; known are {', '.join(known)}")
            fits = isinstance(value, (int, float) if wanted is float else wanted)
            if isinstance(value, bool) or not fits:
                raise CheckpointError(f"{file}: {key} is {value!r:.40}; expected {wanted.__name__}")
            if wanted is not str and not (math.isfinite(value) and value > 0):
                raise CheckpointError(f"{file}: {key} is {value!r:.40}; it must be positive")
        if "{}" not in values.get("prompt_template", "{}"):
            raise CheckpointError(f"{file}: prompt_template has no {{}} for the prompt")
        return replace(self, **values)


@dataclass(frozen=True)
class ModelFolders:
    """Local folders of a model's parts; the text encoder may still be a hub id."""

    transformer: Path
    vae: Path
    text_encoder: str
    defaults: Path

    @classmethod
    def find(
        cls,
        model_path: str | None,
        version: str | None,
        ae_path: str | None,
        text_encoder_name: str | None,
        cache: Path | None,
    ) -> ModelFolders:
        """Where the options of these names say, else where releases have them; downloads from the
        hub into `cache`.

        `model_path` is a transformer's folder, or holds it as `version` (29x480p) or `transformer`;
        without it it is the bundled model. The autoencoder is `ae_path`, else `vae` beside or under
        it, the text encoder `text_encoder_name`, else `text_encoder` there. Raises CheckpointError.
        """
        if model_path is None:
            if not (BUNDLED / DEFAULTS_FILE).is_file():
                raise CheckpointError(
                    "the bundled model is not part of this installation; use --model-path"
                )
            base = BUNDLED
            transformer = base / "transformer"
        else:
            transformer = _transformer_folder(model_path, version, cache)
            base = transformer if (transformer / "vae").is_dir() else transformer.parent
        if ae_path is not None:
            vae = resolve_folder(ae_path, cache_dir=cache)
        elif model_path is None or (base / "vae").is_dir():
            vae = base / "vae"
        else:
            root, _ = _split_hub_id(model_path)
            if Path(root).expanduser().exists():
                raise CheckpointError(f"no autoencoder in {base / 'vae'}; name one with --ae-path")
            vae = resolve_folder(root, "vae", cache)
        local = base / "text_encoder"
        usual = str(local) if local.is_dir() else OFFICIAL_TEXT_ENCODER
        return cls(transformer, vae, text_encoder_name or usual, base / DEFAULTS_FILE)

    def load(
        self, dtype: torch.dtype, cache_dir: Path | None, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Transformer, vae, text_encoder and tokenizer on the CPU, but for those that are `given`.

        Raises CheckpointError.
        """
        loaders: dict[str, Callable[[], Any]] = {
            "transformer": lambda: load_transformer(self.transformer, dtype),
            "vae": lambda: load_vae(self.vae, dtype),
            "text_encoder": lambda: load_text_encoder(self.text_encoder, dtype, cache_dir),
            "tokenizer": lambda: load_tokenizer(self.text_encoder, cache_dir),
        }
        parts = {name: load() for name, load in loaders.items() if name not in given}
        if "transformer" in parts:
            parts["transformer"].fuse_qkv_projections()
        return {**parts, **given}

    def fingerprint(self) -> str:
        """SHA-256 (hex) of the parts that are local."""
        text = Path(self.text_encoder).expanduser()
        parts = [self.transformer, self.vae, *([text] if text.is_dir() else [])]
        return model_fingerprint(parts)

    def model_defaults(self, transformer_config: Mapping[str, Any]) -> ModelDefaults:
        """Of the official scripts, with what the model's own file of defaults says."""
        defaults = ModelDefaults.official(transformer_config)
        return defaults.updated(self.defaults) if self.defaults.is_file() else defaults


def _transformer_folder(model_path: str, version: str | None, cache: Path | None) -> Path:
    """The folder with the transformer's config.json, at or under `model_path`."""
    root, inner = _split_hub_id(model_path)
    local = Path(root).expanduser()
    if inner is None and local.is_dir():
        return local_transformer(local, version)
    if version is not None and inner != version:
        inner = version if inner is None else f"{inner}/{version}"
    return transformer_in(resolve_folder(root, inner, cache))


def _split_hub_id(model_path: str) -> tuple[str, str | None]:
    """("owner/name", "29x480p") of "owner/name/29x480p"; a local folder stays as it is."""
    parts = model_path.rstrip("/").split("/")
    if Path(model_path).expanduser().exists() or len(parts) < 3 or not parts[0]:
        return model_path, None
    return "/".join(parts[:2]), "/".join(parts[2:])


def load_transformer(folder: str | Path, dtype: torch.dtype = torch.float32) -> OpenSoraT2V:
    """The transformer in a folder, in evaluation mode on the CPU. Raises CheckpointError."""
    return load_model(OpenSoraT2V, Path(folder), dtype)


def load_vae(folder: str | Path, dtype: torch.dtype = torch.float32) -> CausalVAEModel:
    """The video autoencoder in a folder, in evaluation mode on the CPU. Raises CheckpointError."""
    return load_model(CausalVAEModel, Path(folder), dtype)
