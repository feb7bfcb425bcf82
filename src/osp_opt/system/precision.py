"""Per-operation precision: run some kinds of layer in another dtype than the model's.

Some devices compute a layer wrongly, slowly or not at all in the model's dtype (see device.py for
which). The weights of those layers are converted once; hooks on the layers themselves convert what
goes in and comes out. Nothing global is changed, and :meth:`PrecisionHandle.remove` undoes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from osp_opt.base.errors import DeviceError


@dataclass(frozen=True)
class PrecisionPolicy:
    """The dtype in which each kind of layer computes; None leaves it in the model's."""

    conv3d: torch.dtype | None = None
    group_norm: torch.dtype | None = None
    softmax: torch.dtype | None = None
    """For modules that have an attribute ``softmax_dtype`` (attention written out by hand)."""


AS_IS = PrecisionPolicy()
"""Every layer in the model's own dtype."""


@dataclass(frozen=True)
class PrecisionHandle:
    """What :func:`apply_precision` changed; ``remove()`` changes it back."""

    layers: tuple[tuple[nn.Module, torch.dtype], ...]
    attentions: tuple[tuple[Any, torch.dtype | None], ...]
    hooks: tuple[RemovableHandle, ...]

    def remove(self) -> None:
        """Take the hooks off and give every layer its former dtype.

        Weights come back rounded to the policy's dtype (float16 keeps every bfloat16 value
        between 2**-14 and 65504 exactly).
        """
        for hook in self.hooks:
            hook.remove()
        for layer, dtype in self.layers:
            layer.to(dtype)
        for attention, former in self.attentions:
            attention.softmax_dtype = former


def apply_precision(model: nn.Module, policy: PrecisionPolicy) -> PrecisionHandle:
    """Convert the weights of the layers that ``policy`` names and keep their neighbours' dtype.

    Apply it after loading, and do not call ``model.to(dtype)`` afterwards.

    Raises:
        DeviceError: a weight does not fit into the range of its new dtype.
    """
    layers: list[tuple[nn.Module, torch.dtype]] = []
    hooks: list[RemovableHandle] = []
    for name, layer, dtype in _layers_to_convert(model, policy):
        former = next(layer.parameters()).dtype
        layer.to(dtype)
        if not all(bool(torch.isfinite(weight).all()) for weight in layer.parameters()):
            raise DeviceError(
                f"weights of {name} exceed the range of {dtype}, in which this device runs it; "
                "use --dtype float32"
            )
        layers.append((layer, former))
        hooks.append(layer.register_forward_pre_hook(_ToDtype(dtype)))
        hooks.append(layer.register_forward_hook(_BackTo(former)))
    attentions = [
        (module, module.softmax_dtype)
        for module in model.modules()
        if policy.softmax is not None and hasattr(module, "softmax_dtype")
    ]
    for module, _ in attentions:
        module.softmax_dtype = policy.softmax  # type: ignore[assignment]
    return PrecisionHandle(tuple(layers), tuple(attentions), tuple(hooks))  # type: ignore[arg-type]


def _layers_to_convert(
    model: nn.Module, policy: PrecisionPolicy
) -> Iterator[tuple[str, nn.Module, torch.dtype]]:
    wanted = ((nn.Conv3d, policy.conv3d), (nn.GroupNorm, policy.group_norm))
    for name, module in model.named_modules():
        for kind, dtype in wanted:
            if isinstance(module, kind) and dtype is not None:
                weight = next(module.parameters(), None)
                if weight is not None and weight.dtype is not dtype:
                    yield name, module, dtype


@dataclass(frozen=True)
class _ToDtype:
    dtype: torch.dtype

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.to(self.dtype) if isinstance(x, Tensor) else x for x in inputs)


@dataclass(frozen=True)
class _BackTo:
    dtype: torch.dtype

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        return output.to(self.dtype)
