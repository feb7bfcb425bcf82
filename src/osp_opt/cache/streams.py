"""What flows from block to block of a transformer that runs its own loop.

Blocks differ in what they return: one tensor, or several in either order, which the next block
takes by name. Nothing of that is declared here; it is seen. A tensor that a block returned and that
the next block is given, the very same object and unchanged, is a *stream*, named by the argument
that takes it. Where that does not hold inside a range of blocks, the model does something between
them, and leaving the range out would be wrong.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.hooks._helpers import TransformerBlockRegistry
from torch import Tensor, nn

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy_file import BlockRange

Streams = tuple[Tensor, ...]
Given = dict[str, Any]  # a block's arguments by name
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Signature:
    """The arguments of a block by name, and the kind of block."""

    kind: type[nn.Module]
    names: tuple[str, ...]

    @classmethod
    def of(cls, block: nn.Module) -> Signature:
        parameters = inspect.signature(block.forward).parameters.values()
        return cls(type(block), tuple(p.name for p in parameters if p.kind not in _VARIADIC))

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Given:
        return {**dict(zip(self.names, args, strict=False)), **kwargs}


@dataclass(frozen=True)
class _Returned:
    """What a block returned: its parts, and their stamps when they left it."""

    kind: type[nn.Module]
    parts: tuple[Any, ...]
    stamps: tuple[object, ...]

    @classmethod
    def of(cls, kind: type[nn.Module], parts: tuple[Any, ...]) -> _Returned:
        return cls(kind, parts, tuple(_stamp(part) for part in parts))


class BlockCalls:
    """The blocks of one call of a transformer, in the order in which they run."""

    def __init__(self) -> None:
        # Per kind of block, which argument of the next block takes each part that it returns.
        self._takers: dict[type[nn.Module], tuple[str | None, ...]] = {}
        self._alone: dict[int, bool] = {}  # whether a block returns one tensor, not in a tuple
        # Per range, its streams with their shapes, and those that end in it.
        self._streams: dict[BlockRange, tuple[dict[str, torch.Size], tuple[str, ...]]] = {}
        self.begin()

    def begin(self) -> None:
        """Forget the tensors of the call before; what was learnt of the blocks stays."""
        self._previous: int | None = None
        self._returned: _Returned | None = None
        self._earlier: list[weakref.ref[Tensor]] = []  # returned by the block before the previous
        self._held: dict[BlockRange, tuple[Given, dict[str, object]]] = {}
        self._results: dict[str, Any] = {}  # streams behind the range that is being left out
        self._given: Given = {}
        self._continued = False  # whether the previous block was given what the one before returned
        self.kept: str | None = None  # what is wrong where the model keeps what a block returned

    def enter(self, index: int, given: Given, first: int, behind: int) -> None:
        """Block `index` is called; `first` is the first block of the range that it belongs to,
        `behind` that of a range that ended before it, else its own.

        Raises PolicyError when it does not continue the block before it, and should, and when the
        model still keeps what a block inside the range returned.
        """
        self._given = given
        problem: str | None = f"block {self._previous} ran before it"
        if self._previous == index - 1 and self._returned is not None:
            problem = self._learn(self._returned, given)
        kept = self._keeps_earlier() if self._continued else None
        self._continued = problem is None
        self.kept = self.kept or kept
        if index >= first + 2:
            problem = problem or kept
        if index > first and problem is not None:
            raise _not_one(first, index, problem)
        if behind < index - 1 and kept is not None:
            raise _not_one(behind, index - 1, kept)
        returned = () if self._returned is None else self._returned.parts
        self._earlier = [weakref.ref(part) for part in returned if isinstance(part, Tensor)]
        self._previous, self._returned = index, None

    def leave(self, index: int, kind: type[nn.Module], output: Any) -> None:
        """Block `index` ran and returned `output`."""
        self._alone[index] = not isinstance(output, (tuple, list))
        self._returned = _Returned.of(kind, (output,) if self._alone[index] else tuple(output))

    def hold(self, blocks: BlockRange) -> None:
        """Keep what the block called last was given, until the last block of the range has run."""
        given = {name: value for name, value in self._given.items() if isinstance(value, Tensor)}
        self._held[blocks] = given, {name: _stamp(value) for name, value in given.items()}

    def change(self, blocks: BlockRange, first: type[nn.Module]) -> tuple[Streams, Streams]:
        """The streams before and behind a range whose last block has just run.

        `first` is the kind of its first block. Raises PolicyError when they are not alike.
        """
        given, stamps = self._held.pop(blocks)
        assert self._returned is not None, "called after leave()"
        last = self._returned.kind
        parts = dict(zip(self._named(last), self._returned.parts, strict=False))
        into = self._takers.get(first, ()) if first is not last else tuple(parts)
        if set(into) != set(parts):
            raise PolicyError(
                f"blocks {_text(blocks)} cannot be reused as one range: {first.__name__} carries "
                f"{_text_of(into)}, {last.__name__} carries {_text_of(tuple(parts))}"
            )
        names = tuple(name for name, part in parts.items() if part is not None)
        for name in names:
            before, after = given.get(name), parts[name]
            if not isinstance(before, Tensor) or not isinstance(after, Tensor):
                raise PolicyError(f"blocks {_text(blocks)}: {name} is no tensor, nothing to store")
            if before.shape != after.shape:
                raise PolicyError(
                    f"blocks {_text(blocks)} make {tuple(after.shape)} of {name} "
                    f"{tuple(before.shape)}; a change of shape cannot be reused"
                )
            if _stamp(before) != stamps[name]:
                raise PolicyError(f"blocks {_text(blocks)} write into {name} that they are given")
        ended = tuple(name for name, part in parts.items() if part is None)
        self._streams[blocks] = {name: given[name].shape for name in names}, ended
        return tuple(given[name] for name in names), tuple(parts[name] for name in names)

    def into(self, blocks: BlockRange, halves: int = 1) -> Streams:
        """What the block called last was given of a range's streams, of which it is the first.

        `halves` is 2 where half of a batch runs alone. Raises PolicyError when a shape is not what
        it was when the range ran.
        """
        shapes, _ = self._streams.get(blocks, ({}, ()))
        for name, shape in shapes.items():
            rows, *rest = self._given[name].shape
            if (rows * halves, *rest) != shape:
                raise PolicyError(
                    f"{name} changed shape from {tuple(shape)} to "
                    f"{tuple(self._given[name].shape)}: call reset() between videos"
                )
        return tuple(self._given[name] for name in shapes)

    def resume(self, blocks: BlockRange, streams: Streams) -> None:
        """The model goes on with these streams behind the range."""
        shapes, ended = self._streams[blocks]
        self._results = dict(zip(shapes, streams, strict=True)) | dict.fromkeys(ended)

    def end(self, blocks: BlockRange) -> None:
        """The call ends with this range, in which nothing ran behind its last block.

        What that one was given may be kept as well, which nobody can see any more: it is taken to
        be where the model keeps what any other block returned. Raises PolicyError.
        """
        if self.kept is not None and blocks[1] - blocks[0] > 1:
            raise _not_one(blocks[0], blocks[1] - 1, self.kept)

    def skip(self, index: int, kind: type[nn.Module]) -> Any:
        """What block `index` of a range that is left out returns, in its own form."""
        parts = tuple(self._results[name] for name in self._named(kind))
        self._returned = _Returned.of(kind, parts)
        return parts[0] if self._alone[index] else parts

    def _learn(self, returned: _Returned, given: Given) -> str | None:
        """Who takes the parts that the block before returned; what is wrong when one is lost."""
        names: list[str | None] = []
        known = self._takers.get(returned.kind, (None,) * len(returned.parts))
        for part, stamp, before in zip(returned.parts, returned.stamps, known, strict=False):
            name = next((name for name, value in given.items() if value is part), None)
            if part is None:
                names.append(before)
            elif not isinstance(part, Tensor) or name is None:
                return "it is not given the very tensors that the block before returned"
            elif _stamp(part) != stamp:
                return f"{name} was written into since the block before returned it"
            else:
                names.append(name)
        self._takers[returned.kind] = tuple(names)
        return None

    def _keeps_earlier(self) -> str | None:
        """What is wrong where somebody still holds what the block before the previous returned."""
        alive = [tensor for ref in self._earlier if (tensor := ref()) is not None]
        ours = [x for given, _ in self._held.values() for x in given.values()]
        ours += [*self._given.values(), *(self._returned.parts if self._returned else ())]
        kept = [tensor for tensor in alive if not any(tensor is x for x in ours)]
        if any(tensor.requires_grad for tensor in kept):
            return "gradients are recorded, which hides what else is kept: use torch.no_grad()"
        return "what an earlier block returned is kept for later" if kept else None

    def _named(self, kind: type[nn.Module]) -> tuple[str, ...]:
        """The arguments that take the parts of what `kind` returns. Raises PolicyError."""
        parts = () if self._returned is None else self._returned.parts
        names = self._takers.get(kind) or _declared(kind, len(parts)) or self._guessed(parts)
        if any(name is None for name in names) or not names:
            raise PolicyError(
                f"nothing shows which arguments take what {kind.__name__} returns; "
                "reuse a range that begins behind the first block"
            )
        self._takers[kind] = names
        return tuple(str(name) for name in names)

    def _guessed(self, parts: tuple[Any, ...]) -> tuple[str | None, ...]:
        """For one tensor, the first argument of its shape: a block by itself shows no more."""
        if len(parts) != 1 or not isinstance(parts[0], Tensor):
            return ()
        alike = (
            name
            for name, value in self._given.items()
            if isinstance(value, Tensor) and value.shape == parts[0].shape
        )
        return (next(alike, None),)


def _not_one(first: int, last: int, problem: str) -> PolicyError:
    return PolicyError(
        f"blocks {first}..{last} cannot be reused as one range, because the model does more than "
        f"run one after the other: at block {last}, {problem}"
    )


def _declared(kind: type[nn.Module], parts: int) -> tuple[str | None, ...]:
    """What diffusers knows of a registered kind of block that returns so many parts."""
    try:
        meta = TransformerBlockRegistry.get(kind)
    except ValueError:  # how diffusers says "not registered"
        return ()
    names: list[str | None] = [None] * parts
    for index, name in (
        (meta.return_hidden_states_index or 0, meta.hidden_states_argument_name),
        (meta.return_encoder_hidden_states_index, meta.encoder_hidden_states_argument_name),
    ):
        if index is not None and index < parts:
            names[index] = name
    return tuple(names)


def _stamp(part: Any) -> object:
    """Changes when a tensor is written into: torch's own count, in inference mode its sum."""
    if not isinstance(part, Tensor):
        return None
    return float(part.float().abs().sum()) if part.is_inference() else part._version


def _text(blocks: BlockRange) -> str:
    return f"{blocks[0]}..{blocks[1] - 1}"


def _text_of(names: tuple[str | None, ...]) -> str:
    return " and ".join(str(name) for name in names) or "unknown streams"
