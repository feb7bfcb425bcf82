"""Diffusers' two registries: which blocks a transformer has, and the hooks on a module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import nn

from osp_opt.base.errors import PolicyError

__all__ = ["attached", "register", "registered_blocks", "unregister"]


def registered_blocks(transformer: nn.Module) -> list[Any]:
    """The blocks of all its lists that diffusers has registered. Raises PolicyError for none."""
    lists = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    registered = [block for blocks in lists for block in blocks if _is_registered(block)]
    if not registered:
        known = [n for n, child in transformer.named_children() if isinstance(child, nn.ModuleList)]
        raise PolicyError(
            f"{type(transformer).__name__} has no list of blocks that diffusers has registered; "
            f"name them with blocks=, it has {', '.join(known) or 'no lists at all'}"
        )
    return registered


def _is_registered(block: nn.Module) -> bool:
    try:
        return TransformerBlockRegistry.get(type(block)) is not None
    except ValueError:  # how diffusers says "not registered"
        return False


def register(module: nn.Module, hook: ModelHook, name: str) -> None:
    """Put a hook on a module under a `name`."""
    HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)


@contextmanager
def attached(module: nn.Module, hook: ModelHook, name: str) -> Iterator[None]:
    """The hook is on the module inside; behind it the module is as it was."""
    register(module, hook, name)
    try:
        yield
    finally:
        unregister(module, name)


def unregister(module: nn.Module, name: str) -> None:
    """Take the hook `name` off a module, which is then as it was before it had any."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.remove_hook(name, recurse=False)
    # diffusers puts the module's own method back as an attribute, which a copy would share.
    if vars(module).get("forward") == getattr(type(module), "forward").__get__(module):  # noqa: B009
        del module.forward
