"""What a block cache reuses, and when. No torch in here.

Two forms share one type:

* the *four-field rule* of the reference tool: one range of blocks, refreshed every
  ``step_interval`` steps from ``step_start`` on, reused on the steps between;
* an *explicit plan* for a fixed number of steps: per step, the block ranges that are reused, and
  whether the difference of the guidance branches is (`guidance.py`), with an order (0 reuses the
  last change, 1 forecasts it linearly from the last two).

Blocks and steps count from 0; a range ``(start, end)`` excludes its end.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import read_json, write_json
from osp_opt.base.errors import PolicyError
from osp_opt.cache.guidance import GuidancePlan, check_order
from osp_opt.cache.policy_file import (
    FOUR_KEYS,
    BlockRange,
    parse_four_field,
    parse_plan,
    plan_to_json,
)

__all__ = ["BlockRange", "CachePolicy", "FourField"]


@dataclass(frozen=True)
class FourField:
    """The reference tool's rule: blocks ``[block_start, block_start + num_blocks)``."""

    block_start: int
    num_blocks: int
    step_start: int
    step_interval: int

    @property
    def blocks(self) -> BlockRange:
        return self.block_start, self.block_start + self.num_blocks

    def refreshes(self, step: int) -> bool:
        return step >= self.step_start and (step - self.step_start) % self.step_interval == 0

    def reuses(self, step: int) -> bool:
        return step > self.step_start and not self.refreshes(step)

    def count_reuses(self, num_steps: int) -> int:
        """Number of steps of a `num_steps` video that skip the range."""
        after = max(num_steps - self.step_start, 0)
        return after - -(-after // self.step_interval)


@dataclass(frozen=True)
class CachePolicy:
    """What is reused at each step; make one with `four_field`, `explicit` or `from_file`."""

    rule: FourField | None = None
    plan: tuple[tuple[BlockRange, ...], ...] = ()
    order: int = 0
    guidance: GuidancePlan | None = None

    @classmethod
    def four_field(
        cls, block_start: int, num_blocks: int, step_start: int, step_interval: int
    ) -> CachePolicy:
        """The reference tool's rule. Raises PolicyError when a number is out of its range.

        An interval of 1 refreshes at every step, hence never reuses: it can be run (and compared),
        but `validate` refuses it as useless.
        """
        for name, value, least in (
            ("cache_block_start", block_start, 0),
            ("cache_num_blocks", num_blocks, 1),
            ("cache_step_start", step_start, 0),
            ("cache_step_interval", step_interval, 1),
        ):
            if value < least:
                raise PolicyError(f"{name} is {value}; it must be at least {least}")
        return cls(rule=FourField(block_start, num_blocks, step_start, step_interval))

    @classmethod
    def explicit(
        cls,
        reuse: Mapping[int, Sequence[BlockRange]],
        num_steps: int,
        order: int = 0,
        guidance: GuidancePlan | None = None,
    ) -> CachePolicy:
        """Reuse `reuse[step]` at each named step of a video of exactly `num_steps` steps.

        With a `guidance` plan both branches refresh together: a step that runs the positive branch
        alone may reuse blocks, and what it computes is not stored, so that a change is as old for
        one branch as for the other and cancels in their difference.

        Raises PolicyError for overlapping or empty ranges, for a step outside the video, and for
        a range that is reused before any step computed it in full (in both branches).
        """
        check_order(order)
        named = (*reuse, *(guidance.steps if guidance is not None else ()))
        outside = [step for step in named if not 0 <= step < num_steps]
        if outside:
            raise PolicyError(f"step {outside[0]} is outside the {num_steps} steps of the policy")
        plan = tuple(_ordered(reuse.get(step, ()), step) for step in range(num_steps))
        policy = cls(plan=plan, order=order, guidance=guidance)
        policy._stores  # noqa: B018 - raises where a range is reused before it was computed
        return policy

    @property
    def is_four_field(self) -> bool:
        """Whether the reference tool can read the file that `save` writes."""
        return self.rule is not None

    def reuses_guidance(self, step: int) -> bool:
        """Whether `step` runs the positive branch alone."""
        return self.guidance is not None and self.guidance.reuses(step)

    def reuse_ranges(self, step: int) -> tuple[BlockRange, ...]:
        """Disjoint ascending block ranges that are not run at `step`."""
        if self.rule is not None:
            return (self.rule.blocks,) if self.rule.reuses(step) else ()
        self._check_step(step)
        return self.plan[step]

    def store_ranges(self, step: int) -> tuple[BlockRange, ...]:
        """Block ranges whose change at `step` a later step will ask for."""
        if self.rule is not None:
            return (self.rule.blocks,) if self.rule.refreshes(step) else ()
        self._check_step(step)
        return self._stores[step]

    def last_use(self, blocks: BlockRange) -> int | None:
        """The last step that reuses `blocks`; None when a four-field rule has no last step."""
        return None if self.rule is not None else self._last_uses[blocks]

    def max_deltas(self) -> int:
        """Most stored changes (each the size of the hidden state) held at once, per branch."""
        return self.most_held(lambda blocks: 1)

    def most_held(self, size: Callable[[BlockRange], int]) -> int:
        """The most that the stored changes of a branch take, one of a range taking `size` of it."""
        if self.rule is not None:
            return size(self.rule.blocks)
        held: dict[BlockRange, list[int]] = {}
        most = 0
        for step in range(len(self.plan)):
            for blocks in self._stores[step]:
                held[blocks] = self.kept([step, *held.get(blocks, ())])
            most = max(most, sum(len(stored) * size(b) for b, stored in held.items()))
            held = {b: stored for b, stored in held.items() if self._last_uses[b] > step}
        return most

    def usable(self, step: int, stored: Sequence[int]) -> list[int]:
        """Of the steps that stored a change of a range, newest first, those that `step` builds on.

        A step that runs both branches takes nothing of one that ran the positive one alone.
        """
        if not self.reuses_guidance(step):
            stored = [each for each in stored if not self.reuses_guidance(each)]
        return list(stored[: self.order + 1])

    def kept(self, stored: Sequence[int]) -> list[int]:
        """Of the steps that stored a change, newest first, those that any later step may use."""
        both = [each for each in stored if not self.reuses_guidance(each)][: self.order + 1]
        return [each for i, each in enumerate(stored) if i <= self.order or each in both]

    def reused_blocks(self, num_steps: int) -> int:
        """Block evaluations of the positive branch saved in a video of `num_steps` steps."""
        if self.rule is not None:
            return self.rule.count_reuses(num_steps) * self.rule.num_blocks
        return sum(end - start for ranges in self.plan for start, end in ranges)

    def speedup(self, num_blocks: int, num_steps: int) -> float:
        """Block evaluations without the cache over those with it; blocks taken as equal.

        With a guidance plan those of both branches count.
        """
        total = 2 * num_blocks * num_steps
        saved = 2 * self.reused_blocks(num_steps)
        for step in self.guidance.steps if self.guidance is not None else ():
            saved += num_blocks - sum(end - start for start, end in self.reuse_ranges(step))
        return total / (total - saved) if saved < total else float("inf")

    def validate(self, num_blocks: int, num_steps: int) -> None:
        """Check against a model of `num_blocks` blocks sampled in `num_steps` steps.

        Raises PolicyError with what was found and what would be accepted.
        """
        if self.rule is None:
            if len(self.plan) != num_steps:
                raise PolicyError(
                    f"the cache policy is for {len(self.plan)} steps and the video has {num_steps}"
                )
            end = max((end for ranges in self.plan for _, end in ranges), default=0)
            if end > num_blocks:
                raise PolicyError(
                    f"the cache policy reuses block {end - 1}; the model's last is {num_blocks - 1}"
                )
            return
        rule = self.rule
        if rule.blocks[1] > num_blocks:
            raise PolicyError(
                f"cache_block_start {rule.block_start} + cache_num_blocks {rule.num_blocks} goes "
                f"beyond the model's {num_blocks} blocks"
            )
        if rule.step_interval < 2:
            raise PolicyError("cache_step_interval 1 never reuses anything; use 2 or more")
        if num_steps < 2:
            raise PolicyError(
                "a run of one step has none to reuse anything at; run without a cache"
            )
        if rule.step_start >= num_steps - 1:
            raise PolicyError(
                f"cache_step_start {rule.step_start} leaves nothing to reuse in {num_steps} steps; "
                f"use at most {num_steps - 2}"
            )

    def warnings(self) -> list[str]:
        """What to know before another program is given the file that `save` writes."""
        if self.rule is None or self.rule.num_blocks > 1:
            return []
        return [
            "a cache of one block: msModelSlim stops at it and MindIE-SD makes wrong videos with "
            "it; only osp-opt and cache-dit run it"
        ]

    def expanded(self, num_steps: int, order: int = 0) -> CachePolicy:
        """The same reuse as an explicit plan for `num_steps` steps, of an order."""
        reuse = {step: self.reuse_ranges(step) for step in range(num_steps)}
        return CachePolicy.explicit(reuse, num_steps, order)

    @classmethod
    def from_file(cls, path: str | Path) -> CachePolicy:
        """Read either format. Raises FileError (unreadable) or PolicyError (content)."""
        data = read_json(path, "cache policy")
        try:
            return cls.from_json(data)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, data: Any) -> CachePolicy:
        """From the decoded JSON of either format. Raises PolicyError."""
        if not isinstance(data, dict):
            raise PolicyError(f"a cache policy is a JSON object, not {type(data).__name__}")
        if "format" not in data:
            values = parse_four_field(data)
            return cls.four_field(**{k.removeprefix("cache_"): v for k, v in values.items()})
        num_steps, order, reuse = parse_plan(data)
        guidance = GuidancePlan.from_json(data["guidance"]) if "guidance" in data else None
        return cls.explicit(reuse, num_steps, order, guidance)

    def to_json(self) -> dict[str, Any]:
        """The four integer keys where the policy is expressible so, else the richer format."""
        if self.rule is not None:
            return {key: getattr(self.rule, key.removeprefix("cache_")) for key in FOUR_KEYS}
        plan = plan_to_json(self.plan, self.order)
        return plan if self.guidance is None else {**plan, "guidance": self.guidance.to_json()}

    def save(self, path: str | Path) -> None:
        """Write the file that `from_file` reads, atomically; warn where others would misread it."""
        for line in self.warnings():
            warnings.warn(line, stacklevel=2)
        write_json(path, self.to_json())

    def __str__(self) -> str:
        if self.rule is not None:
            start, end = self.rule.blocks
            return (
                f"blocks {start}..{end - 1} every {self.rule.step_interval} steps "
                f"from step {self.rule.step_start}"
            )
        steps = sum(bool(ranges) for ranges in self.plan)
        told = [f"{steps} of {len(self.plan)} steps reuse blocks, order {self.order}"]
        if self.guidance is not None:
            guided = f"{len(self.guidance.steps)} of {len(self.plan)} steps reuse guidance"
            told = [*told[: bool(steps)], f"{guided}, order {self.guidance.order}"]
        return f"plan: {'; '.join(told)}"

    def _check_step(self, step: int) -> None:
        if not 0 <= step < len(self.plan):
            raise PolicyError(f"step {step} is outside the {len(self.plan)} steps of the policy")

    @cached_property
    def _last_uses(self) -> dict[BlockRange, int]:
        return {blocks: step for step, ranges in enumerate(self.plan) for blocks in ranges}

    @cached_property
    def _stores(self) -> tuple[tuple[BlockRange, ...], ...]:
        """Per step, the ranges to store: the computations that a use builds on."""
        stores: list[set[BlockRange]] = [set() for _ in self.plan]
        for blocks in self._last_uses:
            computed: list[int] = []  # newest first
            for step, reused in enumerate(self.plan):
                if blocks in reused:
                    sources = self.usable(step, computed)
                    if not sources:
                        raise PolicyError(
                            f"step {step} reuses blocks {blocks[0]}..{blocks[1] - 1} before any "
                            "step computed all of them"
                        )
                    for source in sources:
                        stores[source].add(blocks)
                elif not any(_overlap(blocks, other) for other in reused):
                    computed.insert(0, step)
        return tuple(tuple(sorted(ranges)) for ranges in stores)


def _overlap(a: BlockRange, b: BlockRange) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def _ordered(ranges: Sequence[BlockRange], step: int) -> tuple[BlockRange, ...]:
    """Sorted ranges of one step; raises PolicyError for empty, negative or overlapping ones."""
    ordered = sorted((int(start), int(end)) for start, end in ranges)
    for start, end in ordered:
        if not 0 <= start < end:
            raise PolicyError(f"step {step}: block range [{start}, {end}) is empty or negative")
    for before, after in pairwise(ordered):
        if _overlap(before, after):
            raise PolicyError(f"step {step}: block ranges {before} and {after} overlap")
    return tuple(ordered)
