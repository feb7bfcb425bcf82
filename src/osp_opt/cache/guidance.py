"""When the negative branch of classifier-free guidance does not run. No torch in here.

    eps = eps_neg + g (eps_pos - eps_neg) = eps_pos + (g - 1) d,      d = eps_pos - eps_neg

d changes far less from step to step than either branch. At the steps of a plan only the positive
branch runs, which is half of the network's work, and d is reused or forecast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from osp_opt.base.errors import PolicyError

__all__ = ["GuidancePlan", "check_order"]

_KEYS = ("order", "steps")


@dataclass(frozen=True)
class GuidancePlan:
    """The steps at which the negative branch does not run, ascending, counted from 0.

    order: of their forecast of d; 0 takes the last one, 1 goes on from the last two in a line.

    Raises PolicyError for another order, and for steps that do not ascend or come before any step
    ran both branches.
    """

    steps: tuple[int, ...]
    order: int = 1

    def __post_init__(self) -> None:
        check_order(self.order)
        if not self.steps:
            raise PolicyError("guidance: names no steps; leave it out to run both branches always")
        if self.steps[0] < 1:
            raise PolicyError(
                f"guidance: step {self.steps[0]} cannot reuse any; the first to do so is step 1"
            )
        if any(b <= a for a, b in zip(self.steps, self.steps[1:], strict=False)):
            raise PolicyError("guidance: its steps must ascend, each named once")

    @classmethod
    def every(cls, interval: int, num_steps: int, start: int = 2, order: int = 1) -> GuidancePlan:
        """Both branches up to step `start` and at every `interval`-th step from there on."""
        steps = [step for step in range(start, num_steps) if (step - start) % interval]
        return cls(tuple(steps), order)

    def without(self, step: int) -> GuidancePlan:
        """This plan with both branches at `step`, too. Raises PolicyError where none is left."""
        return GuidancePlan(tuple(each for each in self.steps if each != step), self.order)

    def reuses(self, step: int) -> bool:
        """Whether `step` runs the positive branch alone."""
        return step in self._reusing

    def stores(self, step: int) -> bool:
        """Whether a later step asks for the d of `step`."""
        return step in self._asked

    @cached_property
    def _reusing(self) -> frozenset[int]:
        return frozenset(self.steps)

    @cached_property
    def _asked(self) -> frozenset[int]:
        """The last `order + 1` steps that ran both branches before each that does not."""
        asked: set[int] = set()
        known: list[int] = []
        for step in range(self.steps[-1] + 1):
            if step in self._reusing:
                asked.update(known)
            else:
                known = [*known, step][-(self.order + 1) :]
        return frozenset(asked)

    @classmethod
    def from_json(cls, data: Any) -> GuidancePlan:
        """From decoded JSON. Raises PolicyError."""
        if not isinstance(data, Mapping) or sorted(data) != sorted(_KEYS):
            raise PolicyError(f"guidance must be an object with the keys {' and '.join(_KEYS)}")
        steps = data["steps"]
        if not isinstance(steps, list) or any(type(step) is not int for step in steps):
            raise PolicyError("guidance: steps must be a list of integers")
        return cls(tuple(steps), data["order"])

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads."""
        return {"order": self.order, "steps": list(self.steps)}


def check_order(order: Any) -> None:
    """Raise PolicyError for an order of forecast that there is not."""
    if type(order) is not int or order not in (0, 1):
        raise PolicyError(
            f"order is {order!r}; it must be 0 (reuse what was last) or 1 (forecast it)"
        )
