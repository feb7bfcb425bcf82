"""Weight files of a model folder: which ones count, and their tensors, loaded without pickle code.

The rules are those of the released checkpoints: any ``*.ckpt`` wins over safetensors, and inside
a ``.ckpt`` the averaged weights win over the raw ones.
"""

from __future__ import annotations

import pickle
import struct
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from osp_opt.base.artifacts import read_json
from osp_opt.base.errors import CheckpointError, FileError

STEM = "diffusion_pytorch_model"  # diffusers' name of a model's weight file
GROUP_OR_OTHER_WRITABLE = 0o022
LFS_POINTER = b"version https://git-lfs"
_UNPICKLING = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, ImportError, MemoryError, struct.error),
)
"""What torch's restricted unpickler raises on damaged bytes, which it follows as instructions."""


def find_weights(folder: str | Path) -> list[Path]:
    """Return the weight files of ``folder`` that hold its model, in loading order.

    The only ``*.ckpt`` if there is one; else the shards of a safetensors index, the safetensors
    file, the shards of a ``.bin`` index, the ``.bin`` file. Raises CheckpointError when there is
    none, when several claim to be the model, or when a shard is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; check the model path")
    ckpt = sorted(folder.glob("*.ckpt"))
    if ckpt:
        return [_only(ckpt, folder)]
    for suffix in ("safetensors", "bin"):
        index = folder / f"{STEM}.{suffix}.index.json"
        if index.is_file():
            return _shards(index)
        named = folder / f"{STEM}.{suffix}"
        if named.is_file():
            return [named]
        files = sorted(folder.glob(f"*.{suffix}"))
        if files:
            return [_only(files, folder)]
    raise CheckpointError(
        f"{folder}: no weights found; expected {STEM}.safetensors (or its index), .bin or .ckpt"
    )


def read_state_dict(folder: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a model folder on the CPU, in the type they are stored in.

    Nothing but tensors is unpickled (``weights_only``). Warns when a file is writable by group or
    others; raises CheckpointError when one is missing, truncated or holds anything else.
    """
    files = find_weights(folder)
    warn_if_writable(files)
    state: dict[str, Tensor] = {}
    for file in files:
        tensors = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
        twice = state.keys() & tensors.keys()
        if twice:
            raise CheckpointError(f"{file}: {names(twice)} also stand in another shard")
        state.update(tensors)
    return state


def warn_if_writable(files: Iterable[Path]) -> None:
    """Warn once when a file may be changed by somebody other than its owner."""
    writable = [file for file in files if file.stat().st_mode & GROUP_OR_OTHER_WRITABLE]
    if writable:
        warnings.warn(
            f"{writable[0]}: writable by group or others ({len(writable)} such model files); "
            "run chmod go-w on them",
            UserWarning,
            stacklevel=3,
        )


def names(keys: Iterable[str], most: int = 3) -> str:
    """The first few names and how many more there are, for error texts."""
    ordered = sorted(keys)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def _only(files: list[Path], folder: Path) -> Path:
    if len(files) > 1:
        raise CheckpointError(
            f"{folder}: {names(file.name for file in files)} all look like the weights; "
            "leave one of them"
        )
    return files[0]


def _shards(index: Path) -> list[Path]:
    try:
        content = read_json(index, "weight index")
    except FileError as error:
        raise CheckpointError(str(error)) from error
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: no weight_map in it; download the checkpoint again")
    file_names = {str(name) for name in shards.values()}
    outside = {name for name in file_names if Path(name).name != name or name in ("", "..")}
    if outside:
        raise CheckpointError(f"{index}: {names(outside)} is not a file name in the same folder")
    missing = {name for name in file_names if not (index.parent / name).is_file()}
    if missing:
        raise CheckpointError(
            f"{index.parent}: {len(missing)} of {len(file_names)} weight files are missing: "
            f"{names(missing)}; download them"
        )
    return [index.parent / name for name in sorted(file_names)]


def _damaged(file: Path, error: BaseException) -> CheckpointError:
    with file.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            return CheckpointError(f"{file}: a Git LFS pointer, not weights; run git lfs pull")
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return CheckpointError(f"{file}: truncated or not a weight file ({reason}); download it again")


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(file, error) from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error):
            raise CheckpointError(
                f"{file}: holds Python objects besides tensors, which could run code; not loaded"
            ) from error
        raise _damaged(file, error) from error
    except _UNPICKLING as error:
        raise _damaged(file, error) from error
    state = _model_part(content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file}: not a state dict of tensors; is it a model's weight file?")
    return {str(key): value for key, value in state.items() if not str(key).startswith("loss.")}


def _model_part(content: Any) -> Mapping[Any, Any]:
    """The generator's weights inside a training checkpoint, averaged ones first."""
    if not isinstance(content, Mapping):
        return {}
    averaged = content.get("ema_state_dict")
    if isinstance(averaged, Mapping) and averaged:
        return {str(key).removeprefix("module."): value for key, value in averaged.items()}
    state = content.get("state_dict", content)
    if isinstance(state, Mapping) and isinstance(state.get("gen_model"), Mapping):
        state = state["gen_model"]
    return state if isinstance(state, Mapping) else {}
