"""A cache policy on any diffusers transformer whose blocks diffusers has registered.

OpenSoraT2V takes its block loop as an argument and needs none of this. Other transformers run
their loops themselves, so each block gets one of diffusers' own hooks, which diffusers can remove
again. The step is told, never counted:

* in one's own loop: ``with handle.at(step, "text"): transformer(...)``;
* in a pipeline: ``pipe(..., callback_on_step_end=handle.on_step_end)``; the guidance branch is the
  name that the pipeline gives to diffusers' ``cache_context``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockMetadata, TransformerBlockRegistry
from diffusers.hooks.hooks import BaseState, HookRegistry, ModelHook, StateManager
from torch import Tensor, nn

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import DeltaStore

__all__ = ["CacheHandle", "apply_cache"]

HOOK_NAME = "osp_opt_block_cache"
Streams = tuple[Tensor, ...]


def apply_cache(
    transformer: nn.Module,
    policy: CachePolicy,
    *,
    num_steps: int | None = None,
    dtype: torch.dtype | None = None,
    offload: bool = False,
) -> CacheHandle:
    """Cache the blocks of `transformer` by `policy`; blocks are numbered over all its block lists.

    `num_steps`, when given, validates the policy against the length of the run as well; the other
    options are BlockCache's.

    Raises PolicyError when the blocks are not registered with diffusers, when the policy does not
    fit them, when a range crosses a change of the block's streams (joint to concatenated), or when
    a cache of this kind is already applied.
    """
    if policy.guidance is not None:
        raise PolicyError(
            "this policy also reuses guidance, which a transformer's blocks know nothing of; "
            "take one without"
        )
    blocks = _registered_blocks(transformer)
    if not blocks:
        raise PolicyError(
            f"{type(transformer).__name__} has no list of blocks that diffusers has registered; "
            "register its block class with TransformerBlockRegistry first"
        )
    if any(_hooked(block) for block, _ in blocks):
        raise PolicyError("this transformer already has a cache applied: remove() it first")
    steps = len(policy.plan) or num_steps
    if steps is not None:
        policy.validate(len(blocks), steps if num_steps is None else num_steps)
    streams = [meta.return_encoder_hidden_states_index is None for _, meta in blocks]
    ranges = [policy.rule.blocks] if policy.rule else [b for s in policy.plan for b in s]
    for start, end in ranges:
        if end > len(blocks):
            raise PolicyError(f"the cache policy reuses block {end - 1} of {len(blocks)} blocks")
        if len(set(streams[start:end])) > 1:
            raise PolicyError(
                f"blocks {start}..{end - 1} carry one stream and two streams; "
                f"the change is at block {streams.index(not streams[start], start)}"
            )
    run = _Run(policy, dtype, offload)
    for index, (block, meta) in enumerate(blocks):
        hook = _BlockHook(run, index, index == len(blocks) - 1, meta)
        HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, HOOK_NAME)
    return CacheHandle([block for block, _ in blocks], run)


class CacheHandle:
    """What `apply_cache` returns: tells the step, resets between runs, removes the hooks."""

    def __init__(self, blocks: list[nn.Module], run: _Run) -> None:
        self._blocks = blocks
        self._run = run

    @contextmanager
    def at(self, step: int, branch: str = "both") -> Iterator[None]:
        """Calls of the transformer inside belong to this step and guidance branch."""
        previous = self._run.step, self._run.branch
        self._run.step, self._run.branch = step, branch
        try:
            yield
        finally:
            self._run.step, self._run.branch = previous

    def on_step_end(self, pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        """A diffusers `callback_on_step_end`: the next call belongs to step + 1."""
        self._run.step = step + 1
        return kwargs

    def reset(self) -> None:
        """Forget every stored change and start at step 0 again; call it between runs."""
        self._run.reset()

    def memory_bytes(self) -> int:
        """Bytes of stored changes held now, over all branches."""
        return sum(store.memory_bytes() for store in self._run.stores.values())

    def remove(self) -> None:
        """Take the hooks off again: the transformer is as it was."""
        self.reset()
        for block in self._blocks:
            HookRegistry.check_if_exists_or_initialize(block).remove_hook(HOOK_NAME, recurse=False)
        self._blocks = []


class _Run:
    """State that the hooks of one transformer share."""

    def __init__(
        self,
        policy: CachePolicy,
        dtype: torch.dtype | None,
        offload: bool,
    ) -> None:
        self.policy = policy
        self._options = (dtype, offload)
        self.told = StateManager(BaseState)  # type: ignore[arg-type] # where diffusers' cache_context leaves its name
        self.reset()

    def reset(self) -> None:
        self.step = 0
        self.branch: str | None = None
        self.stores: dict[str, DeltaStore] = {}
        self.inputs: dict[int, Streams] = {}
        self._last: dict[str, int] = {}

    def position(self) -> tuple[int, str]:
        """(step, branch) of the call in progress."""
        context = self.told._context
        step = self.step
        if context is not None and context.step_index is not None and self.branch is None:
            step = int(context.step_index)
        return step, self.branch or (context.name if context is not None else "both")

    def begin(self) -> None:
        """Called at block 0. Raises PolicyError when the same step and branch run twice."""
        step, branch = self.position()
        self.inputs.clear()
        if self._last.get(branch, -1) >= step:
            raise PolicyError(
                f"the transformer ran again at step {step}, branch {branch!r}: tell the step with "
                "handle.at(step, branch) or callback_on_step_end=handle.on_step_end, and reset() "
                "between runs"
            )
        self._last[branch] = step

    def store(self, branch: str) -> DeltaStore:
        if branch not in self.stores:
            self.stores[branch] = DeltaStore(self.policy, *self._options)
        return self.stores[branch]


class _BlockHook(ModelHook):
    """Runs, skips or replaces one block as the policy says for the step in progress."""

    _is_stateful = True
    fn_ref: Any  # set by diffusers when the hook is registered

    def __init__(
        self, run: _Run, index: int, is_last: bool, metadata: TransformerBlockMetadata
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run
        self._index = index
        self._is_last = is_last
        self._meta = metadata
        self._told = run.told  # diffusers looks for a StateManager among the hook's attributes

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run, index = self._run, self._index
        if index == 0:
            run.begin()
        step, branch = run.position()
        x = self._inputs(args, kwargs)
        for blocks in run.policy.reuse_ranges(step):
            if blocks[0] <= index < blocks[1]:
                if index == blocks[0]:
                    x = run.store(branch).apply(step, blocks, x)  # type: ignore[assignment]
                return self._packed(x)
        output = self.fn_ref.original_forward(*args, **kwargs)
        for blocks in run.policy.store_ranges(step):
            if blocks[0] == index:
                run.inputs[index] = x
            if blocks[1] == index + 1:
                run.store(branch).put(step, blocks, run.inputs[blocks[0]], self._outputs(output))
        if self._is_last:
            run.inputs.clear()
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self._run.reset()
        return module

    def _inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Streams:
        names = [self._meta.hidden_states_argument_name]
        if self._meta.return_encoder_hidden_states_index is not None:
            names.append(self._meta.encoder_hidden_states_argument_name)
        return tuple(self._meta._get_parameter_from_args_kwargs(n, args, kwargs) for n in names)

    def _outputs(self, output: Any) -> Streams:
        if not isinstance(output, tuple):
            return (output,)
        second = self._meta.return_encoder_hidden_states_index
        first = output[self._meta.return_hidden_states_index]
        return (first,) if second is None else (first, output[second])

    def _packed(self, x: Streams) -> Any:
        second: Any = self._meta.return_encoder_hidden_states_index
        if second is None:
            return x[0]
        return x if second == 1 else (x[1], x[0])


def _registered_blocks(
    transformer: nn.Module,
) -> list[tuple[nn.Module, TransformerBlockMetadata]]:
    """Blocks with their metadata, over every list of registered blocks, in order of declaration."""
    lists = [child for child in transformer.children() if isinstance(child, nn.ModuleList)]
    found = [(block, _metadata(block)) for blocks in lists for block in blocks]
    return [(block, meta) for block, meta in found if meta is not None]


def _metadata(block: nn.Module) -> TransformerBlockMetadata | None:
    try:
        return TransformerBlockRegistry.get(type(block))
    except ValueError:  # how diffusers says "not registered"
        return None


def _hooked(block: nn.Module) -> bool:
    return HookRegistry.check_if_exists_or_initialize(block).get_hook(HOOK_NAME) is not None
