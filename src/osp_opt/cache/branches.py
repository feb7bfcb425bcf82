"""Guidance reuse in a transformer that others call: its negative branch left out by a plan.

A pipeline that guides calls its transformer for the positive branch and then for the negative one,
or once for a batch of both, the negative half first, and tells which by the name of diffusers'
`cache_context`. At a step of the plan the positive branch runs alone, and

    eps_neg = eps_pos - d,      d reused or forecast (`guidance.py`)

goes back in place of what the negative one would have made, so that the pipeline's own formula of
guidance makes eps_pos + (g - 1) d of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import NoneType
from typing import Any

import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor

from osp_opt.base.errors import PolicyError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.runtime import GuidanceStore

__all__ = ["BRANCHES", "GuidedCalls"]

BRANCHES = {
    "cond": "positive",
    "uncond": "negative",
    "cond_uncond": "both",
    "pred_cond": "positive",
    "pred_uncond": "negative",
}
"""Guidance branches by the names that pipelines and guiders give to diffusers' `cache_context`. A
batch of both holds the negative one first."""

_SAME_FOR_ALL_ROWS = (bool, int, float, str, NoneType, torch.dtype, torch.device)


class GuidedCalls:
    """The calls of one transformer, of which those of the negative branch follow `plan`.

    `first` names the transformer's first argument. `halves` is 2 while the positive half of a
    batch of both runs alone, else 1.
    """

    def __init__(self, plan: GuidancePlan, first: str) -> None:
        self._store = GuidanceStore(plan)
        self._first = first
        self._difference = 0  # bytes of one
        self.reset()

    def reset(self) -> None:
        """Forget every stored difference."""
        self._store.reset()
        self._positive: tuple[int, Any, list[Tensor]] | None = None
        self.halves = 1

    def memory_bytes(self) -> int:
        """Bytes of the differences held now."""
        return self._store.memory_bytes()

    def bytes_needed(self) -> int:
        """The most that will be held, by what the last call returned."""
        return (self._store.plan.order + 1) * self._difference

    def call(
        self,
        step: int,
        name: str | None,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """What `forward` returns at `step` for the branch `name`, or what stands for it.

        Raises PolicyError when the branch is not known, when the negative one runs first, when a
        batch is not one of both, and when no difference is stored where one is reused.
        """
        branch = BRANCHES.get(name or "", name)
        if branch == "both":
            return self._batch(step, forward, args, kwargs)
        if branch == "negative":
            return self._negative(step, functools.partial(forward, *args, **kwargs))
        if branch != "positive":
            told = "no branch is told" if name is None else f"a branch is called {name!r}"
            raise PolicyError(
                f"the cache policy reuses guidance, and {told} at step {step}; the names are "
                f"{', '.join(BRANCHES)} (diffusers' cache_context)"
            )
        output = forward(*args, **kwargs)
        # Copies: the pipeline may write into what it is given before the negative branch runs.
        known = [_wide(part).clone() for part in _tensors(output)]
        self._difference = sum(part.nbytes for part in known)
        if self._store.reuses(step):
            differences = self._store.differences(step, known)
            known = [part - d for part, d in zip(known, differences, strict=True)]
        self._positive = step, output, known
        return output

    def _negative(self, step: int, run: Callable[[], Any]) -> Any:
        """The negative branch of a step whose positive one ran just before."""
        positive, self._positive = self._positive, None
        if positive is None or positive[0] != step:
            raise PolicyError(
                "the cache policy reuses guidance, which needs the positive branch first; here "
                f"the negative one runs before it at step {step}"
            )
        _, form, known = positive
        if self._store.reuses(step):
            return _filled(form, known)
        output = run()
        others = [_wide(part) for part in _tensors(output)]
        self._store.put(step, [p - n for p, n in zip(known, others, strict=True)])
        return output

    def _batch(
        self,
        step: int,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """A batch of both branches, of which the positive half may run alone."""
        rows = self._rows(args[0] if args else kwargs.get(self._first), step)
        if not self._store.reuses(step):
            output = forward(*args, **kwargs)
            pairs = [_wide(part).chunk(2) for part in _tensors(output)]
            differences = [positive - negative for negative, positive in pairs]
            self._difference = sum(d.nbytes for d in differences)
            self._store.put(step, differences)
            return output
        self.halves = 2
        try:
            output = forward(*_positive_half(args, rows), **_positive_half(kwargs, rows))
        finally:
            self.halves = 1
        known = [_wide(part) for part in _tensors(output)]
        reused = self._store.differences(step, known)
        whole = [torch.cat([p - d, p]) for p, d in zip(known, reused, strict=True)]
        return _filled(output, whole)

    def _rows(self, latents: Any, step: int) -> int:
        """Rows of a batch of both branches, which holds the same latents twice."""
        if isinstance(latents, Tensor) and latents.ndim and len(latents) % 2 == 0:
            negative, positive = latents.chunk(2)
            if torch.equal(negative, positive):
                return len(latents)
        raise PolicyError(
            f"the cache policy reuses guidance, and {self._first} at step {step} is no batch of "
            "both branches, whose halves would hold the same latents: is guidance on?"
        )


def _positive_half(value: Any, rows: int) -> Any:
    """Of everything that has a row for each of a batch's videos, the second half."""

    def half(tensor: Tensor) -> Tensor:
        if not tensor.ndim or len(tensor) != rows:
            return tensor
        negative, positive = tensor.chunk(2)
        # A list of numbers (scales, lengths) that only happens to be so long would not repeat.
        if tensor.ndim == 1 and not torch.equal(negative, positive):
            raise PolicyError(
                "the cache policy reuses guidance, and the transformer is given numbers that "
                "differ between the branches; which of them belong to the positive one is unknown"
            )
        return positive

    return _mapped(value, half)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    _mapped(value, keep)
    return found


def _filled(form: Any, tensors: list[Tensor]) -> Any:
    """`form` with these in place of its tensors, in their formats."""
    following = iter(tensors)
    return _mapped(form, lambda tensor: next(following).to(tensor.dtype))


def _mapped(value: Any, each: Callable[[Tensor], Tensor]) -> Any:
    """`value` with every tensor in it replaced. Raises PolicyError for what cannot be looked into.

    Outputs of diffusers' models, lists, tuples and dicts are.
    """
    if isinstance(value, Tensor):
        return each(value)
    if isinstance(value, BaseOutput):
        return type(value)(**{key: _mapped(part, each) for key, part in value.items()})
    if isinstance(value, Mapping):
        return {key: _mapped(part, each) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(part, each) for part in value])
    if not isinstance(value, _SAME_FOR_ALL_ROWS):
        raise PolicyError(
            "the cache policy reuses guidance, and the transformer is given a "
            f"{type(value).__name__}, of which the positive half is unknown"
        )
    return value


def _wide(tensor: Tensor) -> Tensor:
    """At least float32, in which differences of close values are taken."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
