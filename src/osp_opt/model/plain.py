"""Whether a layer is still only what it was built as, so that a shortcut may take its place.

A shortcut that reads a layer's weights instead of calling it would pass by whatever others have
attached: adapters (PEFT), hooks of offloading and casting (accelerate, diffusers), weights that are
computed or quantised, or another layer put in its place.
"""

from __future__ import annotations

from typing import TypeGuard, TypeVar

from torch import compiler, is_grad_enabled, nn
from torch.nn.modules.module import _has_any_global_hook

Layer = TypeVar("Layer", bound=nn.Module)


def is_plain(layer: nn.Module, kind: type[Layer]) -> TypeGuard[Layer]:
    """Whether calling ``layer`` computes what a ``kind`` does from its own parameters, no more.

    Not while code is being compiled, which cannot look, and not where gradients are asked for.
    """
    return (
        not compiler.is_compiling()
        and type(layer) is kind
        and "forward" not in vars(layer)  # how accelerate and diffusers attach their hooks
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not (layer._backward_hooks or layer._backward_pre_hooks)
        and not _has_any_global_hook()  # type: ignore[no-untyped-call]
        and all(p is None or type(p) is nn.Parameter for p in layer._parameters.values())
        and not (is_grad_enabled() and any(p.requires_grad for p in layer.parameters()))
    )
