"""Work that is counted, not timed, so that a busy machine does not matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from osp_opt.model.block import OpenSoraBlock

__all__ = ["multiply_adds"]


@contextmanager
def multiply_adds(transformer: nn.Module) -> Iterator[list[float]]:
    """Adds up, in the one entry of the list, the multiply-adds of the linear layers in the blocks,
    which are nine tenths of the bundled model's work. Keys and values of the caption, made once a
    video, are left out.
    """
    total = [0.0]

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        total[0] += float(output.numel() * module.in_features)  # type: ignore[operator]

    # Wherever a cache has put the blocks; a hook on a projection ends its fusing by itself.
    blocks = [module for module in transformer.modules() if isinstance(module, OpenSoraBlock)]
    hooks = [
        layer.register_forward_hook(count)
        for block in blocks
        for name, layer in block.named_modules()
        if isinstance(layer, nn.Linear) and name not in ("attn2.to_k", "attn2.to_v")
    ]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()
