"""`from_pretrained` for models that are also released in layouts which diffusers does not read."""

from __future__ import annotations

from os import PathLike
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin

from osp_opt.base.errors import CheckpointError

__all__ = ["ReleasedModel"]

_OURS = frozenset({"cache_dir", "torch_dtype", "dtype", "low_cpu_mem_usage", "use_safetensors"})


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
        # Here, because it knows the models that are built on this class.
        from osp_opt.model.checkpoint import load_model, resolve_folder

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
