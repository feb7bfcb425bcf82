"""The runtime of a cache policy: an object that is told the step and supplies the block loop.

    x = run(before, x);  reuse: x = x + delta  |  compute: y = run(span, x), delta = y - x, x = y

Nothing is patched and no call is counted. The hidden state may be a tensor or, for dual-stream
transformers, a tuple of tensors; changes are kept per stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from osp_opt.base.errors import PolicyError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.policy_file import BlockRange

__all__ = ["BlockCache", "DeltaStore", "GuidanceStore", "forecast_weights", "run_all"]

Hidden = Tensor | tuple[Tensor, ...]
# As `model.block.BlockLoop`, but open to hidden states of several streams.
AnyLoop = Callable[[Sequence[Callable[[Any], Any]], Any], Any]
Kept = Callable[[list[int]], list[int]]  # some of the steps given, newest first


class _History:
    """What one thing was at the steps that stored it and may be asked for; tuples of tensors."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, ...]] = {}  # by step, newest first

    def put(self, step: int, values: tuple[Tensor, ...], kept: Kept) -> None:
        # What a video that was not reset left behind lies at or after this step; drop it.
        known = {step: values} | {s: held for s, held in self._known.items() if s < step}
        self._known = {s: known[s] for s in kept(list(known))}

    def forecast(
        self, step: int, what: str, like: Sequence[Tensor], usable: Kept
    ) -> tuple[Tensor, ...]:
        """What `what` will be at `step`, on the device and in the format of `like`.

        Of a batch of both branches, of which `like` is the half of the positive one, that half.
        Raises PolicyError where nothing usable is stored.
        """
        steps = usable(list(self._known))
        if not steps or steps[0] >= step:
            found = f"what is stored is of step {steps[0]}" if steps else "none stored"
            raise PolicyError(
                f"step {step} reuses {what}: {found}; run the steps in order and call reset() "
                "between videos"
            )
        weights = forecast_weights(steps, step)
        by_stream = zip(*(self._known[each] for each in steps), strict=True)
        return tuple(
            _combined([_half(value, own) for value in values], weights, own)
            for values, own in zip(by_stream, like, strict=True)
        )

    def memory_bytes(self) -> int:
        return sum(v.numel() * v.element_size() for held in self._known.values() for v in held)


class DeltaStore:
    """The stored changes of one guidance branch: at most `policy.max_deltas()` of them."""

    def __init__(
        self,
        policy: CachePolicy,
        dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> None:
        self._policy = policy
        self._dtype = dtype
        self._offload = offload
        self._histories: dict[BlockRange, _History] = {}

    def memory_bytes(self) -> int:
        """Bytes held by the stored changes, wherever they are."""
        return sum(history.memory_bytes() for history in self._histories.values())

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def put(self, step: int, blocks: BlockRange, before: Hidden, after: Hidden) -> None:
        """Remember ``after - before`` as the change of `blocks` at `step`."""
        streams = tuple(
            self._packed(y - x) for x, y in zip(_streams(before), _streams(after), strict=True)
        )
        self._histories.setdefault(blocks, _History()).put(step, streams, self._policy.kept)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def apply(self, step: int, blocks: BlockRange, x: Hidden) -> Hidden:
        """`x` plus the stored (or forecast) change of `blocks`. Raises PolicyError when stale."""
        history = self._histories.get(blocks, _History())
        what = f"blocks {blocks[0]}..{blocks[1] - 1}"
        usable = partial(self._policy.usable, step)
        changes = history.forecast(step, what, _streams(x), usable)
        out = tuple(stream + change for stream, change in zip(_streams(x), changes, strict=True))
        if self._policy.last_use(blocks) == step:
            del self._histories[blocks]
        return out if isinstance(x, tuple) else out[0]

    def _packed(self, delta: Tensor) -> Tensor:
        delta = delta.detach() if self._dtype is None else delta.detach().to(self._dtype)
        return delta.cpu() if self._offload else delta


class GuidanceStore:
    """The difference d of the guidance branches, kept by a `GuidancePlan` and told the step.

    Of every output of the network it holds at most two tensors.
    """

    def __init__(self, plan: GuidancePlan) -> None:
        self.plan = plan
        self.reset()

    def reset(self) -> None:
        """Forget every stored difference."""
        self._history = _History()

    def reuses(self, step: int) -> bool:
        """Whether `step` runs the positive branch alone."""
        return self.plan.reuses(step)

    def memory_bytes(self) -> int:
        """Bytes of the differences held now."""
        return self._history.memory_bytes()

    def put(self, step: int, differences: Sequence[Tensor]) -> None:
        """Remember d = eps_pos - eps_neg of each output at `step`, if a later step asks."""
        if self.plan.stores(step):
            self._history.put(step, tuple(d.detach() for d in differences), self._newest)

    def differences(self, step: int, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """d at `step`, of `like`'s shapes. Raises PolicyError when stale or of another shape."""
        return self._history.forecast(step, "guidance", like, self._newest)

    def _newest(self, steps: list[int]) -> list[int]:
        return steps[: self.plan.order + 1]


@dataclass(frozen=True)
class _Loop:
    """The loop of one step: the layers but those that are `reused`; changes that are `stored`."""

    step: int
    store: DeltaStore
    reused: tuple[BlockRange, ...]
    stored: tuple[BlockRange, ...]

    # Each step decides otherwise, and would be compiled by itself; its layers still are, once.
    @torch.compiler.disable(recursive=False)  # type: ignore[no-untyped-call, untyped-decorator]
    def __call__(self, layers: Sequence[Callable[[Any], Any]], x: Any) -> Any:
        last = max(end for _, end in (*self.reused, *self.stored))
        if last > len(layers):
            raise PolicyError(
                f"the cache policy names block {last - 1}, beyond the model's {len(layers)}"
            )
        inputs: dict[int, Hidden] = {}
        skip = dict(self.reused)
        position = 0
        while True:
            # A range ends where the next may start: first settle the ends, then the starts.
            for blocks in self.stored:
                if blocks[1] == position:
                    self.store.put(self.step, blocks, inputs[blocks[0]], x)
            if any(start == position for start, _ in self.stored):
                inputs[position] = x
            if position == len(layers):
                return x
            if position in skip:
                x = self.store.apply(self.step, (position, skip[position]), x)
                position = skip[position]
            else:
                x = layers[position](x)
                position += 1


class BlockCache:
    """Supplies, for each step of a video, a block loop that follows `policy`; and what the policy
    says of guidance as `guidance` (None: nothing), which whoever calls the network follows.

    Args:
        policy: what to reuse.
        dtype: stores the changes in this dtype (None: as computed).
        offload: keeps the changes in host memory between steps.

    One instance serves one video (or batch of videos) at a time: `reset` between them. Memory per
    branch: `policy.max_deltas()` tensors of the hidden state's size.
    """

    def __init__(
        self,
        policy: CachePolicy,
        *,
        dtype: torch.dtype | None = None,
        offload: bool = False,
    ) -> None:
        self.policy = policy
        self._dtype = dtype
        self._offload = offload
        self._branches: dict[str, DeltaStore] = {}
        self.guidance = None if policy.guidance is None else GuidanceStore(policy.guidance)

    def reset(self) -> None:
        """Forget every stored change."""
        self._branches.clear()
        if self.guidance is not None:
            self.guidance.reset()

    def memory_bytes(self) -> int:
        """Bytes held now, over all branches."""
        return sum(store.memory_bytes() for store in self._branches.values())

    def at(self, step: int, branch: str = "both") -> AnyLoop:
        """The block loop of `step`; `branch` names the guidance branch that the state belongs to.

        "both" is a batch of negative and positive states, one after the other; where a step runs
        the positive ones alone, they take their half of what such batches stored.

        The loop raises PolicyError when the policy names blocks that the model does not have,
        when a change is asked for that this video did not store, or when shapes changed.
        """
        reused = self.policy.reuse_ranges(step)
        stored = self.policy.store_ranges(step)
        if not reused and not stored:
            return run_all
        return _Loop(step, self._store(branch), reused, stored)

    def _store(self, branch: str) -> DeltaStore:
        if branch == "positive" and "both" in self._branches:
            return self._branches["both"]
        if branch not in self._branches:
            self._branches[branch] = DeltaStore(self.policy, self._dtype, self._offload)
        return self._branches[branch]


def forecast_weights(known: Sequence[int], step: int) -> list[float]:
    """Weights of the changes stored at the steps `known` (newest first) that predict `step`'s.

    Of one change this is plain reuse; of two the first-order finite-difference forecast of
    TaylorSeer (Liu et al. 2025, arXiv 2503.06923, eq. 5), exact for changes linear in the step.
    """
    if len(known) == 1:
        return [1.0]
    newest, older = known
    ahead = (step - newest) / (newest - older)
    return [1.0 + ahead, -ahead]


def _half(value: Tensor, like: Tensor) -> Tensor:
    """`value`, of `like`'s shape, or its second half where it is a batch of both branches."""
    if len(value) == 2 * len(like):
        value = value[len(like) :]
    if value.shape != like.shape:
        raise PolicyError("what is cached changed shape: call reset() between videos")
    return value


def _combined(values: list[Tensor], weights: list[float], like: Tensor) -> Tensor:
    values = [value.to(device=like.device, dtype=like.dtype) for value in values]
    if len(values) == 1:
        return values[0]
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total.add_(value, alpha=weight)
    return total


def run_all(layers: Sequence[Callable[[Any], Any]], x: Any) -> Any:
    """The block loop without a cache."""
    for layer in layers:
        x = layer(x)
    return x


def _streams(x: Hidden) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)
