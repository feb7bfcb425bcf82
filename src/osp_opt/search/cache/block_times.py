"""What each block costs here, and hence what a policy will save.

Blocks are not assumed equal and the rest of a step (embeddings, guidance, the sampler, noise) is
not assumed free: both are measured on this device with this model and video shape.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from osp_opt.base.errors import PolicyError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.options import CacheMemoryOptions
from osp_opt.pipelines.experts import first_below
from osp_opt.pipelines.maker import Maker, Request
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.trials import Trials
from osp_opt.system.parallel import Parallel

__all__ = [
    "ALONE_STEPS",
    "BLOCK_STEPS",
    "BlockTimer",
    "BlockTimes",
    "measure_times",
    "reuses_guidance",
    "times_here",
]

BLOCK_STEPS = 24  # of the schedule's first steps
ALONE_STEPS = 16  # every other one with both branches
_WARM_STEPS = 3


@dataclass(frozen=True)
class BlockTimes:
    """Seconds per sampling step.

    blocks: of each block, both guidance branches together; rest: of everything else in a step;
    add: of storing one change, or adding it. alone: the share of a step's time that the positive
    branch takes alone.
    """

    blocks: tuple[float, ...]
    rest: float
    add: float = 0.0
    alone: float = 0.5

    @property
    def step(self) -> float:
        """Seconds of a step without cache."""
        return sum(self.blocks) + self.rest

    @property
    def cumulative(self) -> np.ndarray:
        """Seconds of the blocks before each boundary, [blocks + 1]."""
        return np.concatenate([[0.0], np.cumsum(self.blocks)])

    def seconds(self, policy: CachePolicy, num_steps: int) -> float:
        """Predicted denoising seconds of one video under `policy`."""
        before = self.cumulative
        total = 0.0
        for step in range(num_steps):
            reused, stored = policy.reuse_ranges(step), policy.store_ranges(step)
            seconds = self.step - sum(before[end] - before[start] for start, end in reused)
            seconds += self.add * (len(reused) + len(stored))
            total += seconds * (self.alone if policy.reuses_guidance(step) else 1.0)
        return float(total)

    def speedup(self, policy: CachePolicy, num_steps: int) -> float:
        """Predicted denoising time without cache over that with it."""
        return num_steps * self.step / self.seconds(policy, num_steps)

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return {**asdict(self), "blocks": [*self.blocks]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BlockTimes:
        """The inverse of `as_json`."""
        return cls(**{**values, "blocks": tuple(values["blocks"])})


def reuses_guidance(maker: Maker, parallel: Parallel) -> bool:
    """Whether there is guidance, and a rank runs both its branches: else nothing is saved."""
    return maker.reuses_guidance and parallel.layout.cfg == 1


def times_here(
    trials: Trials,
    what: str,
    maker: Maker,
    schedule: TimestepSchedule,
    request: Request,
    *,
    guidance: bool,
) -> BlockTimes:
    """`measure_times`, kept in the ledger as `what`."""
    spent = (BLOCK_STEPS + ALONE_STEPS * guidance) / len(schedule)

    def measure() -> dict[str, Any]:
        return measure_times(maker, schedule, request, guidance=guidance).as_json()

    return BlockTimes.from_json(trials.once(what, spent, measure))


def measure_times(
    maker: Maker, schedule: TimestepSchedule, request: Request, *, guidance: bool
) -> BlockTimes:
    """Time the blocks in the first steps of a video, after a few that warm the device up, and,
    where `guidance` may be reused, steps that run the positive branch alone.
    """
    alone = _measure_alone(maker, request) if guidance else 1.0
    timer = BlockTimer(maker.device.synchronize)
    for steps in (_WARM_STEPS, BLOCK_STEPS):
        first = replace(schedule, timesteps=schedule.timesteps[:steps], corrections=())
        if schedule.is_default:  # samplers with a spacing of their own take no other
            first = maker.schedule(steps)
        maker.denoise(request, first, recorder=timer)
    return replace(timer.result(), alone=alone)


def _measure_alone(maker: Maker, request: Request) -> float:
    """The time of a step that runs the positive branch alone over that of one that runs both."""
    schedule = maker.schedule(ALONE_STEPS)
    plan = GuidancePlan.every(2, ALONE_STEPS, order=0)
    plan = plan.without(first_below(schedule.timesteps, maker.boundary))
    policy = CachePolicy.explicit({}, ALONE_STEPS, guidance=plan)
    ends: list[float] = []

    def step_ended(done: int, total: int) -> None:
        maker.device.synchronize()
        ends.append(time.perf_counter())

    cache = maker.block_cache(policy, CacheMemoryOptions())
    maker.denoise(request, schedule, cache, step_ended)
    seconds = {step: ends[step] - ends[step - 1] for step in range(2, len(ends))}
    alone = median(value for step, value in seconds.items() if plan.reuses(step))
    return alone / median(value for step, value in seconds.items() if not plan.reuses(step))


class BlockTimer:
    """Sees every block run and times it; pass it where a recorder goes.

    On every second step the blocks are timed one by one, waiting for the device after each; on
    the others only the whole loop is, because waiting keeps a fast device from running ahead. The
    single times are scaled to the whole loop's.

    Args:
        synchronize: waits until the device has finished.
        clock: seconds; replaceable so that tests need no real time.
    """

    def __init__(
        self, synchronize: Callable[[], None], clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._synchronize = synchronize
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget every measurement."""
        self._single: dict[int, np.ndarray] = {}  # step -> seconds [blocks], summed over branches
        self._whole: dict[int, float] = {}
        self._adds: list[float] = []
        self._began: dict[int, float] = {}

    def at(
        self, step: int, branch: str = "both"
    ) -> Callable[[Sequence[Callable[[Any], Any]], Any], Any]:
        """The block loop of `step`."""

        def loop(layers: Sequence[Callable[[Any], Any]], x: Any) -> Any:
            self.begin(step, branch, x, len(layers))
            for boundary, layer in enumerate(layers, start=1):
                x = layer(x)
                self.cross(boundary, x)
            self.end()
            return x

        return loop

    def begin(self, step: int, branch: str, states: Any, num_blocks: int) -> None:
        """A call of the transformer is about to run its blocks; then follow `cross`, and `end`."""
        self._step, self._last = step, self._now()
        self._began.setdefault(step, self._last)
        self._seconds: list[float] = []

    def cross(self, boundary: int, states: Any) -> None:
        """Block `boundary` - 1 has run, and left `states`."""
        self._states = states
        if self._step % 2 == 0:
            now = self._now()
            self._seconds.append(now - self._last)
            self._last = now

    def end(self) -> None:
        """All blocks of the call have run."""
        step, states = self._step, self._states
        if step % 2 == 0:
            states - states  # what storing a change costs, and adding one
            self._adds.append(self._now() - self._last)
            before = self._single.get(step, np.zeros(len(self._seconds)))
            self._single[step] = before + self._seconds
        else:
            self._whole[step] = self._whole.get(step, 0.0) + self._now() - self._last
        self._states = None

    def record_denoised(self, step: int, denoised: Any) -> None:
        """Not looked at: only times are."""

    def result(self) -> BlockTimes:
        """Block times over the steps that ran since the last reset; medians.

        What lies between the block loops of two consecutive steps is the rest of a step. Blocks
        and rest are taken as shares of their own step's loop, so that a machine whose speed
        changes from step to step does not distort them. The first two steps warm the device up
        and do not count. Raises PolicyError for fewer than five.
        """
        if len(self._began) < 5:
            raise PolicyError(f"block times need at least 5 timed steps, got {len(self._began)}")
        singles = [self._single[step] for step in sorted(self._single)[1:]]
        blocks = np.median([seconds / seconds.sum() for seconds in singles], axis=0)
        loop = median([self._whole[step] for step in sorted(self._whole)[1:]])
        rest = [
            (self._began[step + 1] - began) / self._loop_seconds(step) - 1.0
            for step, began in self._began.items()
            if step > 1 and step + 1 in self._began
        ]
        calls = len(self._adds) / len(self._single)  # 2 when the guidance branches run one by one
        return BlockTimes(
            tuple(float(seconds) for seconds in blocks * (loop / blocks.sum())),
            max(median(rest), 0.0) * loop,
            median(self._adds) * calls,
        )

    def _loop_seconds(self, step: int) -> float:
        if step in self._whole:
            return self._whole[step]
        return float(self._single[step].sum()) + self._adds[-1]

    def _now(self) -> float:
        self._synchronize()
        return self._clock()
