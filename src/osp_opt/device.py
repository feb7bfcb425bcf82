"""What the machine computes on: the only place that names ``torch.npu``, ``torch.cuda``, torch_npu.

Everything above asks a :class:`Device` and never a vendor module, so a difference between an
Ascend NPU, a CUDA GPU and the CPU is written once, here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from osp_opt.errors import DeviceError, OptionError

DEVICE_NAMES = ("npu", "cuda", "cpu")
"""In order of preference: what ``auto`` tries first, second and last."""

COLLECTIVE_BACKENDS: Mapping[str, str] = MappingProxyType(
    {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
)
"""torch.distributed backend that moves tensors of each kind of device."""

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)

DEFAULT_DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"npu": torch.bfloat16, "cuda": torch.bfloat16, "cpu": torch.float32}
)


@dataclass(frozen=True)
class Memory:
    """Device memory in bytes; ``None`` where the device keeps no such figure."""

    allocated: int | None
    peak: int | None
    total: int | None


@dataclass(frozen=True)
class Device:
    """One opened accelerator (or the CPU) and the choices that follow from its kind."""

    name: str
    torch_device: torch.device
    backend: str
    dtype: torch.dtype

    @classmethod
    def open(cls, name: str = "auto", local_rank: int = 0, *, dtype: str | None = None) -> Device:
        """Open device ``name`` (``auto|npu|cuda|cpu``), number ``local_rank`` of its kind.

        Raises DeviceError when the machine does not have it and OptionError for another name.
        """
        kind = _resolve(name)
        index = None if kind == "cpu" else local_rank
        device = torch.device(kind, index) if index is not None else torch.device(kind)
        if kind != "cpu":
            _runtime(kind).set_device(index)
        chosen = DEFAULT_DTYPES[kind] if dtype in (None, "auto") else DTYPES[str(dtype)]
        return cls(kind, device, COLLECTIVE_BACKENDS[kind], chosen)

    def synchronize(self) -> None:
        """Wait until all queued work is done (nothing to wait for on the CPU)."""
        if self.name != "cpu":
            _runtime(self.name).synchronize(self.torch_device)

    def empty_cache(self) -> None:
        """Hand cached, unused device memory back to the driver."""
        if self.name != "cpu":
            _runtime(self.name).empty_cache()

    def memory(self) -> Memory:
        """Bytes in use now, at most so far, and in all."""
        if self.name == "cpu":
            return Memory(None, None, None)
        runtime = _runtime(self.name)
        return Memory(
            runtime.memory_allocated(self.torch_device),
            runtime.max_memory_allocated(self.torch_device),
            runtime.get_device_properties(self.torch_device).total_memory,
        )


def _runtime(kind: str) -> Any:
    """``torch.cuda`` or ``torch.npu``."""
    return getattr(torch, kind)


def _npu_problem() -> str | None:
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        return f"torch_npu cannot be imported ({error})"
    return None if torch.npu.is_available() else "torch_npu sees no NPU"


def _cuda_problem() -> str | None:
    return None if torch.cuda.is_available() else "torch sees no CUDA GPU"


_PROBLEMS: Mapping[str, Callable[[], str | None]] = MappingProxyType(
    {"npu": _npu_problem, "cuda": _cuda_problem, "cpu": lambda: None}
)


def _resolve(name: str) -> str:
    if name == "auto":
        return next(kind for kind in DEVICE_NAMES if _PROBLEMS[kind]() is None)
    if name not in DEVICE_NAMES:
        raise OptionError(f"--device {name}: unknown; choose auto, {', '.join(DEVICE_NAMES)}")
    problem = _PROBLEMS[name]()
    if problem is not None:
        raise DeviceError(f"--device {name}: {problem}; use --device cpu or auto")
    return name
