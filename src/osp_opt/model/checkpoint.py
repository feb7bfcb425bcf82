"""Models from released checkpoints: a local folder or a hub id, checked before they are used."""

from __future__ import annotations

import json
from collections.abc import Iterable
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import huggingface_hub
import torch
from diffusers.models.modeling_utils import ModelMixin
from huggingface_hub.errors import HTTPError
from pydantic import ConfigDict, ValidationError, create_model
from torch import Tensor, nn

from osp_opt.base.artifacts import HUB_ID, fingerprint_folder, read_json
from osp_opt.base.errors import CheckpointError, file_errors_as, first_line
from osp_opt.model.weights import (
    check_sizes,
    find_weights,
    names,
    read_state_dict,
    warn_if_writable,
)

__all__ = [
    "ReleasedModel",
    "find_weights",
    "load_model",
    "model_fingerprint",
    "open_checkpoint",
    "read_config",
    "read_state_dict",
    "resolve_folder",
]

_OURS = frozenset({"cache_dir", "torch_dtype", "dtype", "low_cpu_mem_usage", "use_safetensors"})
Model = TypeVar("Model", bound=ModelMixin)


class ReleasedModel(ModelMixin):
    """A diffusers model whose released folders may hold weights as ``.ckpt``."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | PathLike[Any] | None,
        *,
        subfolder: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Load the model in evaluation mode from a folder or a hub id (``owner/name``).

        What diffusers has saved is loaded by diffusers, with all of its options; the official
        layout by our own rules, with ``torch_dtype`` (default: float32) and ``cache_dir``.
        Raises CheckpointError.
        """
        source = str(pretrained_model_name_or_path)
        folder = resolve_folder(source, subfolder, kwargs.get("cache_dir"))
        official = any(folder.glob("*.ckpt")) or not any(folder.glob("diffusion_pytorch_model*"))
        if not official:
            return super().from_pretrained(str(folder), **kwargs)
        foreign = sorted(kwargs.keys() - _OURS)
        if foreign:
            raise CheckpointError(
                f"{folder}: {foreign[0]} is for checkpoints that diffusers has saved; load this "
                "one without it and use save_pretrained() first"
            )
        dtype = kwargs.get("torch_dtype") or kwargs.get("dtype") or torch.float32
        loaded: Any = cls
        return load_model(loaded, folder, dtype)


def resolve_folder(
    source: str | Path, subfolder: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """Return the local folder of a model, downloading it when ``source`` is a hub id.

    ``source`` is a folder or ``owner/name``; an existing folder wins. ``subfolder`` (such as
    ``29x480p`` or ``vae``) limits the download to that folder. ``cache_dir`` is where downloads
    go (default: the hub's own cache). Raises CheckpointError.
    """
    source = str(source).rstrip("/") or "/"  # people complete names of folders with a slash
    root = Path(source).expanduser()
    if not root.exists():
        if not HUB_ID.fullmatch(source):
            raise CheckpointError(f"{source}: no such folder, and not a hub id (owner/name)")
        root = _download(source, subfolder, cache_dir)
    folder = root / subfolder if subfolder else root
    if not folder.is_dir():
        found = names((f.name for f in root.iterdir() if f.is_dir()), 8) if root.is_dir() else ""
        raise CheckpointError(f"{folder}: no such folder; {root} has {found or 'no folders'}")
    return folder


def read_config(folder: str | Path, class_name: str) -> dict[str, Any]:
    """Return ``config.json`` of a model folder, written for ``class_name`` (or for none named).

    Raises CheckpointError when it is missing, damaged, or another model's.
    """
    file = Path(folder) / "config.json"
    with file_errors_as(CheckpointError):
        config = read_json(file, "model config")
    if not isinstance(config, dict):
        raise CheckpointError(f"{file}: not a JSON object; is it a model's config?")
    found = config.get("_class_name", class_name)
    if found != class_name:
        raise CheckpointError(f"{file}: is the config of a {found}, expected a {class_name}")
    return config


def model_fingerprint(folders: str | Path | Iterable[str | Path]) -> str:
    """SHA-256 (hex) over the configs and weights of one or more local model folders.

    Files over 64 MiB are sampled; the start of a safetensors file, with its header of names,
    types and shapes, always counts. Computed anew at every call. Raises CheckpointError.
    """
    with file_errors_as(CheckpointError):
        return fingerprint_folder(folders)


def _download(repo: str, subfolder: str | None, cache_dir: str | Path | None) -> Path:
    try:
        folder = huggingface_hub.snapshot_download(
            repo,
            cache_dir=cache_dir,
            allow_patterns=[f"{subfolder}/*"] if subfolder else None,
            ignore_patterns=None if subfolder else ["*/*"],
        )
    except (OSError, ValueError, HTTPError) as error:
        raise CheckpointError(
            f"{repo}: not a folder here, and the hub did not deliver it ({first_line(error)})"
        ) from error
    return Path(folder)


def open_checkpoint(model_class: type[Model], folder: Path) -> tuple[Model, dict[str, Tensor]]:
    """The model without weights (on "meta") and the weights that fit it, of a local folder.

    safetensors are mapped, not read, so this is cheap; raises CheckpointError as loading does.
    """
    config = read_config(folder, model_class.__name__)
    warn_if_writable([folder / "config.json"])
    state = read_state_dict(folder)
    try:
        _check_config(model_class, config, len(state))
        # On "meta" nothing is allocated or initialised: the file's tensors become the weights.
        with torch.device("meta"):
            model: Model = model_class.from_config(config)  # type: ignore[attr-defined]
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'}: cannot build a {model_class.__name__} from it ({error})"
        ) from error
    _check_keys(model, state, folder)
    return model, state


def _check_config(model_class: type[Model], config: dict[str, Any], tensors: int) -> None:
    """Raise ValueError for values of other types than the model's, and for sizes that would take
    for ever to build: a model has no more layers than its file has tensors.
    """
    kinds = get_type_hints(model_class.__init__)
    kinds.pop("return", None)
    fields: Any = {name: (kind | None, None) for name, kind in kinds.items()}
    checked = create_model("Config", __config__=ConfigDict(strict=True, extra="allow"), **fields)
    try:
        checked.model_validate_json(json.dumps(config))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ValueError(f"{problem['loc'][0]}: {problem['msg']}") from error
    check_sizes(config, most_layers=tensors)


def load_model(model_class: type[Model], folder: Path, dtype: torch.dtype) -> Model:
    """A model of a local folder, in evaluation mode on the CPU. Raises CheckpointError."""
    model, state = open_checkpoint(model_class, folder)
    # Copied, because safetensors maps the file: saving to it later would pull the weights away.
    weights = {key: tensor.to(dtype, copy=True) for key, tensor in state.items()}
    model.load_state_dict(weights, assign=True)
    return model.eval()


def _check_keys(model: nn.Module, state: dict[str, Tensor], folder: Path) -> None:
    expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
    shared = expected.keys() & state.keys()
    problems = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "of another shape": {key for key in shared if expected[key] != state[key].shape},
        "of whole numbers": {key for key in shared if not state[key].is_floating_point()},
    }
    found = [f"{len(keys)} {what} ({names(keys)})" for what, keys in problems.items() if keys]
    if found:
        raise CheckpointError(
            f"{folder}: weights do not fit config.json: {'; '.join(found)}; "
            "take both from the same checkpoint"
        )
