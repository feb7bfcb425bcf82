"""The registered blocks of a stranger's transformers: found, watched, and timed by hooks.

The blocks are those of `cache.hooks`: of every list of blocks that diffusers has registered, in
order. What a block makes of the *hidden states* (the stream that becomes the video) is seen; the
text that some carry beside it is not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.hooks.hooks import BaseState, ModelHook, StateManager
from torch import Tensor, nn

from osp_opt.base.errors import CalibrationError, CheckpointError, PolicyError
from osp_opt.cache.branches import BRANCHES
from osp_opt.cache.hooks import CacheHandle
from osp_opt.cache.registries import attached, registered_blocks
from osp_opt.cache.streams import Signature

__all__ = [
    "BlockWatch",
    "PairHook",
    "Paired",
    "Position",
    "SilentHook",
    "transformers_of",
    "watching",
]

HOOK_NAME = "osp_opt_block_watch"
Paired = Callable[[int, Callable[[], Any], Callable[[], Any]], Any]
"""Runs both calls of a step, without a cache and with it; returns what the first one made."""


class BlockWatch(Protocol):
    """What is told as the blocks of one call of a transformer run; `states` are [b, ..., d]."""

    def begin(self, step: int, branch: str, states: Tensor, num_blocks: int) -> None: ...

    def cross(self, boundary: int, states: Tensor) -> None: ...

    def end(self) -> None: ...


class Position:
    """Where a run is: the step, which the scheduler's calls tell."""

    def __init__(self) -> None:
        self.step = 0


@contextmanager
def watching(
    transformers: Sequence[nn.Module], watch: BlockWatch, position: Position
) -> Iterator[None]:
    """Tell `watch` of every block that runs inside; the hooks are gone behind it."""
    with ExitStack() as stack:
        for transformer in transformers:
            told = _Told()
            stack.enter_context(attached(transformer, told, HOOK_NAME))
            blocks = registered_blocks(transformer)
            for index, block in enumerate(blocks):
                hook = _Hook(watch, position, told, index, len(blocks), block)
                stack.enter_context(attached(block, hook, HOOK_NAME))
        yield


class _Told(ModelHook):
    """On a transformer: hears the branch that the pipeline tells by `cache_context`."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.told = StateManager(BaseState)  # type: ignore[arg-type]

    def branch(self) -> str:
        """The branch of the call in progress. Raises CalibrationError where none is told."""
        context = self.told._context
        name = str(getattr(context, "name", context))
        if name not in BRANCHES:
            told = "no guidance branch" if context is None else f"a guidance branch {name!r}"
            raise CalibrationError(
                f"the pipeline tells {told} for its call of the transformer; it has to be one of "
                f"{', '.join(BRANCHES)} (diffusers' cache_context)"
            )
        return BRANCHES[name]

    def reset_state(self, module: nn.Module) -> nn.Module:
        return module


class _Hook(ModelHook):
    """On a block: shows what goes in (of the first) and what comes out."""

    def __init__(
        self,
        watch: BlockWatch,
        position: Position,
        told: _Told,
        index: int,
        count: int,
        block: nn.Module,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch
        self._position = position
        self._told = told
        self._index = index
        self._count = count
        self._signature = Signature.of(block)
        known = TransformerBlockRegistry.get(type(block))
        self._argument = known.hidden_states_argument_name or "hidden_states"
        self._part = known.return_hidden_states_index or 0

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self._index == 0:
            given = self._signature.bind(args, kwargs)[self._argument]
            self._watch.begin(self._position.step, self._told.branch(), given, self._count)
        return args, kwargs

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        states = output[self._part] if isinstance(output, (tuple, list)) else output
        self._watch.cross(self._index + 1, states)
        if self._index + 1 == self._count:
            self._watch.end()
        return output


class SilentHook(ModelHook):
    """A transformer that does nothing: its output is zeros of its input's shape."""

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        zeros = torch.zeros_like(args[0] if args else kwargs["hidden_states"])
        return (zeros,)


class PairHook(ModelHook):
    """On a transformer with a cache: `paired` runs each of its calls without and with it."""

    fn_ref: Any  # set by diffusers when the hook is registered

    def __init__(self, handle: CacheHandle, paired: Paired, position: Position) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._handle = handle
        self._paired = paired
        self._position = position

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(self.fn_ref.original_forward, *args, **kwargs)

        def plain() -> Any:
            with self._handle.bypassed():
                return call()

        return self._paired(self._position.step, plain, call)


def transformers_of(pipe: Any) -> dict[str, nn.Module]:
    """Its transformers by name, each with as many registered blocks.

    Raises CheckpointError where there are none, or blocks that cannot be watched.
    """
    name = type(pipe).__name__
    found = {
        part: module
        for part, module in pipe.components.items()
        if part.startswith("transformer") and isinstance(module, nn.Module)
    }
    if not found:
        raise CheckpointError(f"{name}: it has no transformer")
    try:
        counts = {part: len(registered_blocks(module)) for part, module in found.items()}
    except PolicyError as error:
        raise CheckpointError(f"{name}: {str(error).split(';')[0]}") from error
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{part} has {count}" for part, count in counts.items())
        raise CheckpointError(f"{name}: its transformers differ in their blocks ({told})")
    return found
