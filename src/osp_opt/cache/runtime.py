"""The runtime of a cache policy: an object that is told the step and supplies the block loop.

    x = run(before, x);  reuse: x = x + delta  |  compute: y = run(span, x), delta = y - x, x = y

Nothing is patched and no call is counted. The hidden state may be a tensor or, for dual-stream
transformers, a tuple of tensors; changes are kept per stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.policy_file import BlockRange

__all__ = ["BlockCache", "DeltaStore", "forecast_weights"]

Hidden = Tensor | tuple[Tensor, ...]
# As models.transformer.BlockLoop, but open to hidden states of several streams.
AnyLoop = Callable[[Sequence[Callable[[Any], Any]], Any], Any]


@dataclass(frozen=True)
class _Delta:
    """Change of the hidden state across a block range at one step."""

    step: int
    streams: tuple[Tensor, ...]


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
        self._history: dict[BlockRange, list[_Delta]] = {}

    def memory_bytes(self) -> int:
        """Bytes held by the stored changes, wherever they are."""
        return sum(
            stream.numel() * stream.element_size()
            for history in self._history.values()
            for delta in history
            for stream in delta.streams
        )

    def put(self, step: int, blocks: BlockRange, before: Hidden, after: Hidden) -> None:
        """Remember ``after - before`` as the change of `blocks` at `step`."""
        streams = tuple(
            self._packed(y - x) for x, y in zip(_streams(before), _streams(after), strict=True)
        )
        # What a video that was not reset left behind lies at or after this step; drop it.
        history = [delta for delta in self._history.get(blocks, []) if delta.step < step]
        history.insert(0, _Delta(step, streams))
        self._history[blocks] = history[: self._policy.order + 1]

    def apply(self, step: int, blocks: BlockRange, x: Hidden) -> Hidden:
        """`x` plus the stored (or forecast) change of `blocks`. Raises PolicyError when stale."""
        history = self._history.get(blocks, [])
        if not history or history[0].step >= step:
            found = f"the stored change is of step {history[0].step}" if history else "none stored"
            raise PolicyError(
                f"step {step} reuses blocks {blocks[0]}..{blocks[1] - 1}: {found}; run the steps "
                "in order and call reset() between videos"
            )
        if [s.shape for s in history[0].streams] != [s.shape for s in _streams(x)]:
            raise PolicyError("the hidden state changed shape: call reset() between videos")
        weights = forecast_weights([delta.step for delta in history], step)
        out = tuple(
            stream + self._combined([delta.streams[i] for delta in history], weights, stream)
            for i, stream in enumerate(_streams(x))
        )
        if self._policy.last_use(blocks) == step:
            del self._history[blocks]
        return out if isinstance(x, tuple) else out[0]

    def _packed(self, delta: Tensor) -> Tensor:
        delta = delta.detach() if self._dtype is None else delta.detach().to(self._dtype)
        return delta.cpu() if self._offload else delta

    def _combined(self, deltas: list[Tensor], weights: list[float], like: Tensor) -> Tensor:
        deltas = [delta.to(device=like.device, dtype=like.dtype) for delta in deltas]
        if len(deltas) == 1:
            return deltas[0]
        total = weights[0] * deltas[0]
        for weight, delta in zip(weights[1:], deltas[1:], strict=True):
            total = total.add_(delta, alpha=weight)
        return total


class BlockCache:
    """Supplies, for each step of a video, a block loop that follows `policy`.

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

    def reset(self) -> None:
        """Forget every stored change."""
        self._branches.clear()

    def memory_bytes(self) -> int:
        """Bytes held now, over all branches."""
        return sum(store.memory_bytes() for store in self._branches.values())

    def at(self, step: int, branch: str = "both") -> AnyLoop:
        """The block loop of `step`; `branch` names the guidance branch that the state belongs to.

        The loop raises PolicyError when the policy names blocks that the model does not have,
        when a change is asked for that this video did not store, or when shapes changed.
        """
        reused = self.policy.reuse_ranges(step)
        stored = self.policy.store_ranges(step)
        store = self._store(branch) if reused or stored else None

        def loop(layers: Sequence[Callable[[Any], Any]], x: Any) -> Any:
            if store is None:
                return _run(layers, x)
            if max(end for _, end in (*reused, *stored)) > len(layers):
                raise PolicyError(
                    f"the cache policy ({self.policy}) names blocks beyond the model's "
                    f"{len(layers)}"
                )
            inputs: dict[int, Hidden] = {}
            skip = dict(reused)
            position = 0
            while True:
                # A range ends where the next may start: first settle the ends, then the starts.
                for blocks in stored:
                    if blocks[1] == position:
                        store.put(step, blocks, inputs[blocks[0]], x)
                if any(start == position for start, _ in stored):
                    inputs[position] = x
                if position == len(layers):
                    return x
                if position in skip:
                    x = store.apply(step, (position, skip[position]), x)
                    position = skip[position]
                else:
                    x = layers[position](x)
                    position += 1

        return loop

    def _store(self, branch: str) -> DeltaStore:
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


def _run(layers: Sequence[Callable[[Any], Any]], x: Any) -> Any:
    for layer in layers:
        x = layer(x)
    return x


def _streams(x: Hidden) -> tuple[Tensor, ...]:
    return x if isinstance(x, tuple) else (x,)
