"""Weight files of a model folder: which ones count, and their tensors, loaded without pickle code.

The rules are those of the released checkpoints: any ``*.ckpt`` wins over safetensors, and inside
a ``.ckpt`` the averaged weights win over the raw ones.
"""

from __future__ import annotations

import argparse
import codecs
import pickle
import re
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PosixPath, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from osp_opt.base.artifacts import read_json
from osp_opt.base.errors import CheckpointError, file_errors_as, first_line

STEM = "diffusion_pytorch_model"  # diffusers' name of a model's weight file
_MOST = 2**20  # of any size in a config; the largest in use is mT5's vocabulary
_MOST_LISTED = 64
_COUNTED = ("layers", "blocks", "heads")
GROUP_OR_OTHER_WRITABLE = 0o022
_INDEX = r"\.{}\.index(\.[\w-]+)?\.json$"  # with a variant's name, such as fp16
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})")  # name, number, how many
_MOST_SHARDS = 10_000
LFS_POINTER = b"version https://git-lfs"
_UNPICKLING = (
    *(RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, AssertionError, ImportError, MemoryError, struct.error),
)
"""What torch's restricted unpickler raises on damaged bytes, which it follows as instructions."""


def find_weights(folder: str | Path) -> list[Path]:
    """Return the weight files of ``folder`` that hold its model, in loading order.

    The only ``*.ckpt`` if there is one; else, of safetensors before ``.bin``: the shards of an
    index, the file or the complete set of shards of the usual name, the only one of another name
    (such as ``fp16`` in it). Hidden files do not count. Raises CheckpointError when there is none,
    when several claim to be the model, or when shards are missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; check the model path")
    files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
    ckpt = [file for file in files if file.suffix == ".ckpt"]
    if ckpt:
        return [regular_file(_only({file.name: file for file in ckpt}, folder))]
    for suffix in ("safetensors", "bin"):
        indexes = {file.name: file for file in files if re.search(_INDEX.format(suffix), file.name)}
        usual = indexes.get(f"{STEM}.{suffix}.index.json")
        if usual is not None or len(indexes) == 1:
            return _shards(usual or _only(indexes, folder))
        whole = _whole([file for file in files if file.suffix == f".{suffix}"])
        if whole:
            return [regular_file(file) for file in whole.get(STEM) or _only(whole, folder)]
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


def check_sizes(config: Mapping[str, Any], most_layers: int) -> None:
    """Raise ValueError for a model config whose sizes would take for ever to build."""
    for name, value in config.items():
        most = most_layers if name.startswith("num_") and name.endswith(_COUNTED) else _MOST
        numbers = value if isinstance(value, list) else [value]
        if len(numbers) > _MOST_LISTED:
            raise ValueError(f"{name} lists {len(numbers)} values")
        for number in numbers:
            if isinstance(number, int) and number > most:
                raise ValueError(f"{name} is {number}, more than its weights can fill")


def names(keys: Iterable[str], most: int = 3) -> str:
    """The first few names and how many more there are, for error texts."""
    ordered = sorted(keys)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return ", ".join(ordered[:most]) + more


def _whole(files: Iterable[Path]) -> dict[str, list[Path]]:
    """The models that the files may be, by name: a file each, or all shards of one.

    Raises CheckpointError when shards are missing.
    """
    found: dict[str, list[Path]] = {}
    totals: dict[str, set[int]] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        name = file.stem if shard is None else shard[1]
        found.setdefault(name, []).append(file)
        totals.setdefault(name, set()).add(0 if shard is None else int(shard[3]))
    for name, (total, *others) in ((name, sorted(each)) for name, each in totals.items()):
        if others:
            raise CheckpointError(
                f"{found[name][0].parent}: {names(f.name for f in found[name])} are of different "
                "checkpoints; keep those of one, or their index"
            )
        have = {int(m[2]) for f in found[name] if (m := _SHARD.fullmatch(f.stem))}
        missing = sorted(set(range(1, min(total, _MOST_SHARDS) + 1)) - have)
        if missing:
            suffix = found[name][0].suffix
            listed = [f"{name}-{number:05d}-of-{total:05d}{suffix}" for number in missing]
            raise _incomplete(found[name][0].parent, listed, total)
    return found


def _incomplete(folder: Path, missing: Sequence[str], total: int) -> CheckpointError:
    return CheckpointError(
        f"{folder}: {len(missing)} of {total} weight files are missing: {names(missing)}; "
        "download them"
    )


def _only(found: Mapping[str, Any], folder: Path) -> Any:
    if len(found) > 1:
        raise CheckpointError(
            f"{folder}: {names(found)} all look like the weights; move the others elsewhere"
        )
    return next(iter(found.values()))


def regular_file(file: Path) -> Path:
    """Refuse what is no file: a pipe would be waited for."""
    if not file.is_file():
        what = "a link to nothing" if file.is_symlink() else "not a regular file"
        raise CheckpointError(f"{file}: {what}; download the checkpoint again")
    return file


def _shards(index: Path) -> list[Path]:
    with file_errors_as(CheckpointError):
        content = read_json(index, "weight index")
    shards = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{index}: no weight_map in it; download the checkpoint again")
    file_names = {str(name) for name in shards.values()}
    outside = {name for name in file_names if Path(name).name != name or name in ("", "..")}
    if outside:
        raise CheckpointError(f"{index}: {names(outside)} is not a file name in the same folder")
    missing = {name for name in file_names if not (index.parent / name).is_file()}
    if missing:
        raise _incomplete(index.parent, sorted(missing), len(file_names))
    return [index.parent / name for name in sorted(file_names)]


def _damaged(file: Path, error: BaseException) -> CheckpointError:
    with file.open("rb") as stream:
        if stream.read(len(LFS_POINTER)) == LFS_POINTER:
            return CheckpointError(f"{file}: a Git LFS pointer, not weights; run git lfs pull")
    return CheckpointError(
        f"{file}: truncated or not a weight file ({first_line(error)}); download it again"
    )


def _read_safetensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise _damaged(file, error) from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_harmless()):
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error):
            named = re.search(r"GLOBAL (\S+)", str(error))
            raise CheckpointError(
                f"{file}: holds Python objects besides tensors ({named[1] if named else 'unnamed'})"
                ", which could run code; not loaded. Where you trust it, keep its tensors alone: "
                "torch.save(torch.load(FILE, weights_only=False)['state_dict'], FILE)"
            ) from error
        raise _damaged(file, error) from error
    except _UNPICKLING as error:
        raise _damaged(file, error) from error
    state = _model_part(content)
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{file}: not a state dict of tensors; is it a model's weight file?")
    return {str(key): value for key, value in state.items() if not str(key).startswith("loss.")}


def _harmless() -> list[Any]:
    """What training scripts put beside tensors, and what cannot do anything but hold values.

    numpy moved its functions; files name both places.
    """
    numbers = [type(np.dtype(kind)) for kind in np.sctypeDict.values()]
    moved: list[Any] = []
    for pickled in (np.float64(0), np.empty(0)):
        function: Any = pickled.__reduce__()[0]
        for core in ("core", "_core"):
            moved.append((function, f"numpy.{core}.multiarray.{function.__name__}"))
    return [
        *dict.fromkeys(numbers),
        *moved,
        *(np.dtype, np.ndarray, codecs.encode),
        *(argparse.Namespace, SimpleNamespace, (_as_dict, "collections.defaultdict")),
        *(dict, list, set, int, float, str, tuple),  # factories of a defaultdict
        *(PurePosixPath, PosixPath, Path),
    ]


def _as_dict(factory: object = None) -> dict[Any, Any]:
    """For a defaultdict, which torch's restricted unpickler cannot fill."""
    return {}


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
