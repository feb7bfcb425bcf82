"""What the machine computes on: the only place that names ``torch.npu``, ``torch.cuda``, torch_npu.

Everything above asks a :class:`Device` and never a vendor module, so a difference between an
Ascend NPU, a CUDA GPU and the CPU is written once, here.

A vendor package counts as present when it can be *imported*: torch_npu installed on a machine
without CANN has metadata, and libraries that read metadata believe in it, but it does not load.
In that state even ``import torch`` fails unless TORCH_DEVICE_BACKEND_AUTOLOAD=0, so the launcher
sets that for its workers and :func:`settle_torch_npu` imports it, or hides it from those libraries.

What ran on hardware: the CPU, and one CUDA GPU for a short time (docs/devices.md). The NPU branches
are written to torch_npu 2.13's interface and run in the tests on a stand-in, not yet on an Ascend.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

import torch

from osp_opt.base.errors import DeviceError, OptionError, first_line
from osp_opt.system.host import process_memory, processor, reset_process_peak
from osp_opt.system.precision import AS_IS, PrecisionPolicy
from osp_opt.system.timing import Timer

HALF_DTYPES = (torch.bfloat16, torch.float16)

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)

ASCEND_PRECISION = PrecisionPolicy(
    conv3d=torch.float16, group_norm=torch.float32, softmax=torch.float32
)
"""Half-precision work on an NPU: 3D convolutions fail in bfloat16 there, statistics need float32
(both as Open-Sora-Plan v1.2 runs on Ascend)."""


@dataclass(frozen=True)
class Kind:
    """What one kind of device needs that the others do not."""

    collectives: str
    """torch.distributed backend that moves this device's tensors."""
    dtype: torch.dtype
    """Used when none is asked for."""
    visible: str | None
    """Environment variable with which users choose which devices a process sees."""
    attention: tuple[str, ...]
    """Name beginnings of the diffusers attention backends that run on it."""


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "npu": Kind("hccl", torch.bfloat16, "ASCEND_RT_VISIBLE_DEVICES", ("native", "_native_npu")),
        "cuda": Kind(
            "nccl",
            torch.bfloat16,
            "CUDA_VISIBLE_DEVICES",
            (
                *("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math"),
                *("flash", "_flash", "flex", "sage", "_sage", "aiter", "xformers"),
            ),
        ),
        "cpu": Kind("gloo", torch.float32, None, ("native", "_native_flash", "_native_math")),
    }
)
"""In order of preference: what ``auto`` tries first, second and last."""

HALF_ONLY_ATTENTION = ("_native_npu", "_native_cudnn", "flash", "_flash", "sage", "_sage", "aiter")
"""Name beginnings of attention backends whose kernels take no float32."""


@dataclass(frozen=True)
class Memory:
    """Bytes: in use now, at most since the last reset, and in all; None where not known."""

    allocated: int | None
    peak: int | None
    total: int | None


@dataclass(frozen=True)
class Discovery:
    """One kind of device on this machine: ``problem`` is None when it can be opened."""

    kind: str
    count: int
    models: tuple[str, ...]
    memory_bytes: tuple[int, ...]
    software: str | None
    problem: str | None


@dataclass(frozen=True)
class Device:
    """One opened accelerator (or the CPU) and the choices that follow from its kind."""

    name: str
    torch_device: torch.device
    backend: str
    dtype: torch.dtype
    attention: str
    precision: PrecisionPolicy

    @classmethod
    def open(
        cls,
        name: str = "auto",
        local_rank: int = 0,
        *,
        dtype: str | None = None,
        attention: str | None = None,
    ) -> Device:
        """Open the device of this process and make it torch's current one of its kind.

        Args:
            name: ``auto`` (the first of npu, cuda, cpu that works), ``npu``, ``cuda`` or ``cpu``.
            local_rank: index among the visible devices of that kind; ignored on the CPU.
            dtype: ``float32``, ``bfloat16``, ``float16``; None or ``auto`` is the kind's default.
            attention: a diffusers attention backend; None or ``auto`` is the kind's default.

        Raises:
            DeviceError: the machine does not have the device, or not so many of them.
            OptionError: a name, dtype or attention backend that is unknown or does not fit.
        """
        kind = _resolve(name)
        torch_device = torch.device(kind) if kind == "cpu" else _claim(kind, local_rank)
        chosen = _choose_dtype(kind, dtype)
        return cls(
            name=kind,
            torch_device=torch_device,
            backend=KINDS[kind].collectives,
            dtype=chosen,
            attention=_choose_attention(kind, chosen, attention),
            precision=ASCEND_PRECISION if kind == "npu" and chosen in HALF_DTYPES else AS_IS,
        )

    @property
    def model(self) -> str:
        """What it is, such as ``cuda: NVIDIA H100 80GB HBM3``."""
        if self.name == "cpu":
            return f"cpu: {processor()}"
        return f"{self.name}: {_runtime(self.name).get_device_properties(self.torch_device).name}"

    def synchronize(self) -> None:
        """Wait until all queued work is done (nothing to wait for on the CPU)."""
        if self.name != "cpu":
            _runtime(self.name).synchronize(self.torch_device)

    def empty_cache(self) -> None:
        """Hand cached, unused device memory back to the driver."""
        if self.name != "cpu":
            _runtime(self.name).empty_cache()

    def memory(self) -> Memory:
        """Device memory; on the CPU the memory of this process and of the machine."""
        if self.name == "cpu":
            return Memory(*process_memory())
        runtime = _runtime(self.name)
        return Memory(
            allocated=runtime.memory_allocated(self.torch_device),
            peak=runtime.max_memory_allocated(self.torch_device),
            total=runtime.get_device_properties(self.torch_device).total_memory,
        )

    @property
    def dtype_name(self) -> str:
        """``bfloat16``, as options and files have it."""
        return str(self.dtype).removeprefix("torch.")

    def timer(self) -> Timer:
        """Measures stages of work on it."""
        return Timer(self.synchronize, lambda: self.memory().peak, self.reset_peak_memory)

    def reset_peak_memory(self) -> None:
        """Start a new measurement of :attr:`Memory.peak`."""
        if self.name == "cpu":
            reset_process_peak()
        else:
            _runtime(self.name).reset_peak_memory_stats(self.torch_device)

    def manual_seed(self, seed: int) -> None:
        """Seed torch's generators, for training; sampling draws from sampling/noise.py only."""
        torch.manual_seed(seed)
        if self.name != "cpu":
            _runtime(self.name).manual_seed_all(seed)

    @contextmanager
    def exact_float32(self) -> Iterator[None]:
        """Within it, float32 on CUDA means float32: cuDNN otherwise convolves in TF32 (10 bits)."""
        if self.name != "cuda" or self.dtype is not torch.float32:
            yield
            return
        before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of a device or of this machine was asked for and not to be had.

    torch has an exception of its own for its accelerators; torch_npu and the CPU's allocator say
    it in the text of a RuntimeError.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )


def discover() -> tuple[Discovery, ...]:
    """What this machine offers, in the order in which ``auto`` prefers it."""
    return tuple(_discover(kind) for kind in KINDS)


def _discover(kind: str) -> Discovery:
    problem = _PROBLEMS[kind]()
    if kind == "cpu":
        return Discovery(kind, 1, (), (process_memory()[2] or 0,), None, None)
    if problem is not None:
        return Discovery(kind, 0, (), (), None, problem)
    runtime = _runtime(kind)
    indices = range(runtime.device_count())
    properties = [runtime.get_device_properties(index) for index in indices]
    return Discovery(
        kind=kind,
        count=len(properties),
        models=tuple(str(each.name) for each in properties),
        memory_bytes=tuple(int(each.total_memory) for each in properties),
        software=_software(kind),
        problem=None,
    )


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """``x`` on ``device``, queued behind its work: the host does not wait as in a plain copy.

    Only from page-locked memory can a copy be queued; torch keeps it until the copy is done.
    """
    if x.device.type != "cpu" or device.type not in KINDS or device.type == "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def _software(kind: str) -> str:
    if kind == "cuda":
        return f"CUDA {torch.version.cuda}"
    return f"torch_npu {importlib.import_module('torch_npu').__version__}"


def _runtime(kind: str) -> Any:
    """``torch.cuda`` or ``torch.npu``: two modules with the same functions."""
    return getattr(torch, kind)


@cache
def settle_torch_npu() -> str | None:
    """Import torch_npu where it is installed; where that fails, hide it and say why.

    diffusers and transformers believe torch_npu's metadata and then import it, so that they could
    not be imported either on a machine without CANN: call this before them. The import system
    takes None in sys.modules for "there is no such module". Tried once per process.
    """
    if importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed (pip install 'osp-opt[npu]')"
    try:
        importlib.import_module("torch_npu")
    except (ImportError, OSError, RuntimeError) as error:
        sys.modules["torch_npu"] = None  # type: ignore[assignment]
        if isinstance(error, ModuleNotFoundError):
            return f"torch_npu is installed but lacks the package {error.name!r}; install it"
        return (
            f"torch_npu is installed but does not load ({first_line(error)}); install CANN and "
            "source its set_env.sh in this shell"
        )
    return None


def _npu_problem() -> str | None:
    problem = settle_torch_npu()
    if problem is None and not _runtime("npu").is_available():
        return f"torch_npu is installed but sees no NPU{_visibility('npu')}"
    return problem


def _cuda_problem() -> str | None:
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if not _runtime("cuda").is_available():
        return f"torch sees no CUDA GPU{_visibility('cuda')}"
    return None


_PROBLEMS: Mapping[str, Callable[[], str | None]] = MappingProxyType(
    {"npu": _npu_problem, "cuda": _cuda_problem, "cpu": lambda: None}
)


def _visibility(kind: str) -> str:
    """`` (VARIABLE=value)`` when the user restricted what processes see, else nothing."""
    variable = KINDS[kind].visible
    value = os.environ.get(variable) if variable else None
    return "" if value is None else f" ({variable}={value})"


def _resolve(name: str) -> str:
    if name == "auto":
        return next(kind for kind in KINDS if _PROBLEMS[kind]() is None)
    if name not in KINDS:
        raise OptionError(f"--device {name}: unknown; choose auto, {', '.join(KINDS)}")
    problem = _PROBLEMS[name]()
    if problem is not None:
        raise DeviceError(f"--device {name}: {problem}; or use --device cpu")
    return name


def _claim(kind: str, local_rank: int) -> torch.device:
    count = _runtime(kind).device_count()
    if local_rank >= count:
        raise DeviceError(
            f"--device {kind}: process {local_rank} has no device of its own; {count} visible"
            f"{_visibility(kind)}: {', '.join(_discover(kind).models)}; "
            f"use --nproc-per-node {count}, or --device cpu"
        )
    torch_device = torch.device(kind, local_rank)
    _runtime(kind).set_device(torch_device)
    return torch_device


def _choose_dtype(kind: str, name: str | None) -> torch.dtype:
    if name in (None, "auto"):
        return KINDS[kind].dtype
    if name not in DTYPES:
        raise OptionError(f"--dtype {name}: unknown; choose auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _choose_attention(kind: str, dtype: torch.dtype, name: str | None) -> str:
    """The kind's fused kernel where it takes the dtype, else torch's own dispatch."""
    if name in (None, "auto"):
        return "_native_npu" if kind == "npu" and dtype in HALF_DTYPES else "native"
    assert name is not None
    if not any(_begins(name, prefix) for prefix in KINDS[kind].attention):
        raise OptionError(
            f"--attention {name}: does not run on {kind}; choose auto or one that begins with "
            f"{', '.join(KINDS[kind].attention)}"
        )
    if dtype not in HALF_DTYPES and any(_begins(name, half) for half in HALF_ONLY_ATTENTION):
        raise OptionError(
            f"--attention {name}: takes bfloat16 or float16 only, not {dtype}; "
            "choose native or another --dtype"
        )
    return name


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or (prefix != "native" and name.startswith(prefix))
