"""A stand-in for torch_npu 2.13: what its import does to torch, on no hardware at all.

The tests copy this file to ``torch_npu/__init__.py`` on a path of their own. Importing it renames
torch's private backend to "npu", registers ``torch.npu``, an "hccl" backend (gloo underneath) and
``npu_fusion_attention`` (written out from the vendor's documentation: layout BSND, and a mask is
True where attention is *forbidden*). Every call that reaches the device is kept in ``calls``.
"""

from __future__ import annotations

import os
import types
from typing import Any

import torch
import torch.distributed as dist

__version__ = "2.13.0"
GIB = 2**30
calls: list[list[Any]] = []


def _note(name: str, result: Any = None) -> Any:
    def function(*args: Any) -> Any:
        calls.append([name, *map(str, args)])
        return result

    return function


def _visible() -> int:
    listed = os.environ.get("ASCEND_RT_VISIBLE_DEVICES", "0,1")
    return len([index for index in listed.split(",") if index])


npu = types.ModuleType("torch.npu")
vars(npu).update(
    is_available=lambda: _visible() > 0,
    device_count=_visible,
    get_device_properties=lambda index: types.SimpleNamespace(
        name="Ascend910B2", total_memory=64 * GIB
    ),
    memory_allocated=_note("memory_allocated", 3 * GIB),
    max_memory_allocated=_note("max_memory_allocated", 5 * GIB),
    reset_peak_memory_stats=_note("reset_peak_memory_stats"),
    set_device=_note("set_device"),
    synchronize=_note("synchronize"),
    empty_cache=_note("empty_cache"),
    manual_seed_all=_note("manual_seed_all"),
    _is_in_bad_fork=lambda: False,
)
torch.utils.rename_privateuse1_backend("npu")
torch._register_device_module("npu", npu)


def _hccl(store: Any, rank: int, size: int, timeout: Any) -> Any:
    calls.append(["hccl"])
    return dist.ProcessGroupGloo(store, rank, size, timeout)


dist.Backend.register_backend("hccl", _hccl, devices=["npu"])


def npu_fusion_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    head_num: int,
    *,
    atten_mask: torch.Tensor | None,
    input_layout: str,
    scale: float,
    **others: Any,
) -> tuple[torch.Tensor]:
    """Softmax attention on ``b s n d`` tensors, where ``atten_mask`` forbids."""
    assert input_layout == "BSND"
    assert head_num == query.shape[2]
    scores = torch.einsum("bqnd,bknd->bnqk", query, key) * scale
    if atten_mask is not None:
        calls.append(["masked attention", str(tuple(atten_mask.shape)), str(atten_mask.dtype)])
        scores = scores.masked_fill(atten_mask, float("-inf"))
    return (torch.einsum("bnqk,bknd->bqnd", scores.softmax(-1), value),)


def _autoload() -> None:
    """Entry point that ``import torch`` calls."""
