"""A cache policy on any diffusers transformer.

OpenSoraT2V takes its block loop as an argument and needs none of this. Other transformers run
their loops themselves, so each block gets one of diffusers' own hooks, which diffusers can remove
again. The step is told, never counted:

* in one's own loop: ``with handle.at(step, "text"): transformer(...)``;
* in a pipeline: ``pipe(..., callback_on_step_end=handle.on_step_end)``; the guidance branch is the
  name that the pipeline gives to diffusers' ``cache_context``, and the step, where it gives one.

A policy may also leave out the negative branch of guidance at some steps (`cache.branches`).

A range of blocks can be left out only if the model does nothing between its blocks. That is watched
(`cache.streams`) whenever a range runs or is left out: what the model does otherwise (residuals
added between blocks, lists run in turn, outputs kept for later) is refused, never approximated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import torch
from diffusers.hooks.hooks import BaseState, ModelHook, StateManager
from torch import nn

from osp_opt.base.errors import PolicyError
from osp_opt.cache.branches import GuidedCalls
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.registries import register, registered_blocks, unregister
from osp_opt.cache.runtime import DeltaStore
from osp_opt.cache.streams import BlockCalls, Signature

__all__ = ["CacheHandle", "apply_cache"]

HOOK_NAME = "osp_opt_block_cache"


def apply_cache(
    model: Any,
    policy: CachePolicy,
    *,
    blocks: str | Sequence[str] | None = None,
    num_steps: int | None = None,
    dtype: torch.dtype | None = None,
    offload: bool = False,
) -> CacheHandle:
    """Cache the blocks of a transformer, or of a pipeline's transformer, by `policy`.

    `blocks` names the lists of blocks in the order in which they run ("transformer_blocks", or
    seen from a pipeline "transformer.blocks"); by default all lists whose blocks diffusers has
    registered. Blocks are numbered over all of them. `num_steps`, when given, validates the policy
    against the length of the run as well; the other options are BlockCache's.

    Raises PolicyError when there are no such blocks, when the policy does not fit them, or when a
    cache of this kind is already applied; and while running, when the model does something between
    the blocks of a range, see the module's text.
    """
    transformer, found = _find_blocks(model, blocks)
    if any(_hooked(module) for module in (transformer, *found)):
        raise PolicyError("this transformer already has a cache applied: remove() it first")
    steps = len(policy.plan) or num_steps
    if steps is not None:
        policy.validate(len(found), steps if num_steps is None else num_steps)
    ranges = {policy.rule.blocks} if policy.rule else {b for step in policy.plan for b in step}
    last = max((end for _, end in ranges), default=0)
    if last > len(found):
        raise PolicyError(f"the cache policy reuses block {last - 1} of {len(found)} blocks")
    signatures = [Signature.of(block) for block in found]
    kinds = [signature.kind for signature in signatures]
    run = _Run(policy, kinds, steps, (dtype, offload))
    if policy.guidance is not None:
        run.guided = GuidedCalls(policy.guidance, Signature.of(transformer).names[0])
    register(transformer, _CallHook(run), HOOK_NAME)
    for index, block in enumerate(found):
        register(block, _BlockHook(run, index, signatures[index]), HOOK_NAME)
    return CacheHandle([transformer, *found], run)


class CacheHandle:
    """What `apply_cache` returns: tells the step, resets between runs, removes the hooks."""

    def __init__(self, modules: list[nn.Module], run: _Run) -> None:
        self._modules = modules
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

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        """Calls of the transformer inside run every block, and the cache learns nothing of them."""
        self._run.bypassed = True
        try:
            yield
        finally:
            self._run.bypassed = False

    def on_step_end(self, pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        """A diffusers `callback_on_step_end`: the next call belongs to step + 1.

        After the last step it is step 0 of another video. Raises PolicyError when the step is not
        the one that was cached, as after a video that was broken off.
        """
        run = self._run
        if run.step != step:
            raise PolicyError(
                f"step {step} ended where step {run.step} was expected: reset() the cache after a "
                "video that was broken off"
            )
        run.step = step + 1
        if run.step == (run.num_steps or getattr(pipe, "num_timesteps", None)):
            run.reset()
        return kwargs

    def reset(self) -> None:
        """Forget every stored change and start at step 0 again.

        It happens by itself where a video's end or another's begin is seen: at the last step of
        a run whose length is known, at an earlier step than the last one told, and where a
        diffusers pipeline resets its caches.
        """
        self._run.reset()

    def memory_bytes(self) -> int:
        """Bytes held now: stored changes of all branches, and of their difference."""
        guided = self._run.guided
        held = 0 if guided is None else guided.memory_bytes()
        return held + sum(store.memory_bytes() for store in self._run.stores.values())

    def bytes_needed(self) -> int:
        """The most that `memory_bytes` can become in a video like the last one.

        A step shows it, before any that reuses something. Raises PolicyError before the first.
        """
        run = self._run
        if not run.sizes:
            raise PolicyError("what a cache will hold shows in a step: run one before you ask")
        needed = 0 if run.guided is None else run.guided.bytes_needed()
        for size in run.sizes.values():
            needed += run.policy.most_held(lambda blocks, size=size: size[blocks[1] - 1])  # type: ignore[misc]
        return needed

    def remove(self) -> None:
        """Take the hooks off again: the transformer is as it was."""
        self.reset()
        for module in self._modules:
            unregister(module, HOOK_NAME)
        self._modules = []


class _Run:
    """State that the hooks of one transformer share."""

    def __init__(
        self,
        policy: CachePolicy,
        kinds: list[type[nn.Module]],
        num_steps: int | None,
        storing: tuple[torch.dtype | None, bool],
    ) -> None:
        self.policy = policy
        self.kinds = kinds
        self.num_steps = num_steps
        self._storing = storing
        # Where diffusers' cache_context leaves the branch's name, and perhaps the step.
        self.told = StateManager(BaseState)  # type: ignore[arg-type]
        self.calls = BlockCalls()
        self.sizes: dict[str, dict[int, int]] = {}  # bytes of a change, by branch and last block
        self.guided: GuidedCalls | None = None  # where the policy reuses guidance
        self.branch: str | None = None
        self.bypassed = False
        self.in_call = False  # between a call's begin and its end, as far as hooks saw them
        self.reset()

    def reset(self) -> None:
        self.step = 0
        self.stores: dict[str, DeltaStore] = {}
        self._last: dict[str, int] = {}
        self.calls.begin()
        if self.guided is not None:
            self.guided.reset()

    def position(self) -> tuple[int, str]:
        """(step, branch) of the call in progress."""
        context = self.told._context
        step, name = self.step, "both"
        if context is not None:
            name = str(getattr(context, "name", context))
            index = getattr(context, "step_index", None)
            step = step if index is None or self.branch is not None else int(index)
        return step, self.branch or name

    @property
    def tells_branch(self) -> bool:
        """Whether somebody says which branch the call in progress is."""
        return self.branch is not None or self.told._context is not None

    def begin(self) -> None:
        """A call of the transformer begins.

        Raises PolicyError when the same step and branch run twice.
        """
        step, branch = self.position()
        last = self._last.get(branch, -1)
        if step == last:
            raise PolicyError(
                f"the transformer ran again at step {step}, branch {branch!r}: tell the step with "
                "handle.at(step, branch) or callback_on_step_end=handle.on_step_end, and reset() "
                "between runs"
            )
        if step < last:  # another video
            told = self.step
            self.reset()
            self.step = told
        self._last[branch] = step
        self.calls.begin()

    def ran(self, branch: str, index: int, output: Any) -> None:
        """Block `index` returned `output`, of whose tensors a change would be."""
        dtype, _ = self._storing
        parts = output if isinstance(output, (tuple, list)) else (output,)
        tensors = [part for part in parts if isinstance(part, torch.Tensor)]
        size = sum(part.numel() * (dtype or part.dtype).itemsize for part in tensors)
        self.sizes.setdefault(branch, {})[index] = size

    def store(self, branch: str) -> DeltaStore:
        if branch not in self.stores:
            self.stores[branch] = DeltaStore(self.policy, *self._storing)
        return self.stores[branch]


class _CallHook(ModelHook):
    """On the transformer: where a call begins and ends, and where diffusers tells the branch."""

    _is_stateful = True
    fn_ref: Any  # set by diffusers when the hook is registered

    def __init__(self, run: _Run) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run
        self._told = run.told  # diffusers looks for a StateManager among the hook's attributes

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if not self._run.bypassed:
            self._run.begin()
            self._run.in_call = True
        return args, kwargs

    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run, forward = self._run, self.fn_ref.original_forward
        if run.guided is None or run.bypassed:
            return forward(*args, **kwargs)
        step, branch = run.position()
        return run.guided.call(step, branch if run.tells_branch else None, forward, args, kwargs)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        run = self._run
        if not run.bypassed:
            for blocks in run.policy.store_ranges(run.position()[0]):
                if blocks[1] == len(run.kinds):
                    run.calls.end(blocks)
        run.calls.begin()  # holds no tensor between calls
        run.in_call = False
        return output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self._run.reset()
        return module


class _BlockHook(ModelHook):
    """Runs, skips or replaces one block as the policy says for the step in progress."""

    fn_ref: Any  # set by diffusers when the hook is registered

    def __init__(self, run: _Run, index: int, signature: Signature) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run
        self._index = index
        self._signature = signature

    # What is decided here differs from block to block and step to step; the block is compiled.
    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward = self.fn_ref.original_forward
        if self._run.bypassed:
            return forward(*args, **kwargs)
        if self._left_out(args, kwargs):
            return self._run.calls.skip(self._index, self._signature.kind)
        output = forward(*args, **kwargs)
        self._ran(output)
        return output

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _left_out(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the block does not run now; what the call says of the model is noted."""
        run, calls, index = self._run, self._run.calls, self._index
        if run.guided is not None and not run.in_call:
            raise PolicyError(
                "the transformer has lost the hook that reuses guidance, as it does behind every "
                "video with enable_model_cpu_offload(): apply the cache anew for each video"
            )
        step, branch = run.position()
        reused, stored = run.policy.reuse_ranges(step), run.policy.store_ranges(step)
        starts = [start for start, end in (*reused, *stored) if start <= index < end]
        ended = [start for start, end in stored if end == index]
        given = self._signature.bind(args, kwargs)
        calls.enter(index, given, min(starts, default=index), min(ended, default=index))
        for blocks in reused:
            if blocks[0] == index:
                into: Any = calls.into(blocks, run.guided.halves if run.guided else 1)
                behind: Any = run.store(branch).apply(step, blocks, into)
                calls.resume(blocks, behind)
            if blocks[0] <= index < blocks[1]:
                return True
        for blocks in stored:
            if blocks[0] == index:
                calls.hold(blocks)
        return False

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _ran(self, output: Any) -> None:
        """The block returned `output`: keep the change of a range that ends with it."""
        run, calls, index = self._run, self._run.calls, self._index
        step, branch = run.position()
        if run.guided is None or run.guided.halves == 1:
            run.ran(branch, index, output)
        calls.leave(index, self._signature.kind, output)
        for blocks in run.policy.store_ranges(step):
            if blocks[1] == index + 1:
                before, after = calls.change(blocks, run.kinds[blocks[0]])
                run.store(branch).put(step, blocks, before, after)


def _find_blocks(model: Any, names: str | Sequence[str] | None) -> tuple[nn.Module, list[Any]]:
    """The transformer, and the blocks of the named lists or else of all registered ones."""
    transformer = model if isinstance(model, nn.Module) else getattr(model, "transformer", None)
    if names is not None:
        names = [names] if isinstance(names, str) else list(names)
        lists = []
        for name in names:
            owner, path = model, name.split(".")
            if not isinstance(model, nn.Module):  # a pipeline: the first part is its component
                owner = transformer = getattr(model, path[0], None)
                path = path[1:]
            elif path[0] == "transformer" and not hasattr(model, "transformer"):
                path = path[1:]
            found = reduce(lambda part, key: getattr(part, key, None), path, owner)
            if not isinstance(found, nn.ModuleList) or not len(found):
                raise PolicyError(f"blocks={name!r} names no list of blocks")
            lists.append(found)
        assert isinstance(transformer, nn.Module), "it holds the lists"
        return transformer, [block for blocks in lists for block in blocks]
    if not isinstance(transformer, nn.Module):
        raise PolicyError(f"{type(model).__name__} is no transformer and has none; pass the model")
    return transformer, registered_blocks(transformer)


def _hooked(module: nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and registry.get_hook(HOOK_NAME) is not None
