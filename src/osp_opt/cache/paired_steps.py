"""The speed-up of a cache, measured so that a busy machine neither hides nor invents it.

Whole videos timed one after the other differ by whatever else the machine did meanwhile. Here
every step of one video runs its blocks twice, without and with the cache, milliseconds apart, in
changing order: a load that lasts slows both, and one that comes and goes spoils few pairs.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, Protocol

from osp_opt.base.errors import PolicyError
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import run_all

__all__ = ["PairedSteps", "PairedTimer"]

Layers = Sequence[Callable[[Any], Any]]
Loop = Callable[[Layers, Any], Any]


class _Cache(Protocol):
    """A block cache: its policy, and its block loop for a step."""

    policy: CachePolicy

    def at(self, step: int, branch: str = "both") -> Loop: ...

    def reset(self) -> None: ...


class PairedSteps:
    """Runs and times steps without and with a cache; the video is the one without.

    Args:
        policy: of the cache.
        synchronize: waits until the device has finished.
        clock: seconds; replaceable so that tests need no real time.
    """

    def __init__(
        self,
        policy: CachePolicy,
        synchronize: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._policy = policy
        self._synchronize = synchronize
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Forget every measurement."""
        self._plain: dict[int, float] = defaultdict(float)  # step -> seconds, over branches
        self._cached: dict[int, float] = defaultdict(float)
        self._began: dict[int, float] = {}

    def run(self, step: int, plain: Callable[[], Any], cached: Callable[[], Any]) -> Any:
        """Run and time both; the result is the plain one's."""
        now = self._now()
        self._began.setdefault(step, now)
        results = {}
        # Thue and Morse's order: balanced among the steps of any one interval too.
        cache_first = step.bit_count() % 2 == 1
        for with_cache in (cache_first, not cache_first):
            results[with_cache] = (cached if with_cache else plain)()
            before, now = now, self._now()
            (self._cached if with_cache else self._plain)[step] += now - before
        return results[False]

    def speedup(self, num_steps: int) -> float:
        """How many times faster a video of `num_steps` steps is denoised with the cache.

        Steps that store and reuse the same blocks are of one kind: the median ratio of their
        pairs is theirs. What lies between the block loops costs the same with and without. The
        first step warms the device up and counts only where its kind has no other. Raises
        PolicyError for fewer than three timed steps.
        """
        steps = sorted(self._plain)
        if len(steps) < 3:
            raise PolicyError(f"a speed-up needs at least 3 timed steps, got {len(steps)}")
        policy = self._policy
        kinds: dict[object, list[int]] = defaultdict(list)
        for step in range(num_steps):
            kinds[policy.reuse_ranges(step), policy.store_ranges(step)].append(step)
        cost = 0.0  # of all block loops with the cache, in loops without
        for members in kinds.values():
            timed = [step for step in members if step in self._plain]
            timed = [step for step in timed if step > 0] or timed
            if not timed:
                raise PolicyError(f"step {members[0]} of {num_steps} was not timed")
            cost += len(members) * median(self._cached[s] / self._plain[s] for s in timed)
        loop = median(self._plain[step] for step in steps[1:])
        rest = max(median(self._rests()), 0.0)
        return num_steps * (loop + rest) / (cost * loop + num_steps * rest)

    def _rests(self) -> list[float]:
        """Per step, the time between its block loops and the next step's."""
        return [
            self._began[step + 1] - began - self._plain[step] - self._cached[step]
            for step, began in self._began.items()
            if step > 0 and step + 1 in self._began
        ]

    def _now(self) -> float:
        self._synchronize()
        return self._clock()


class PairedTimer(PairedSteps):
    """Supplies block loops that run without and with `cache`; pass it where a cache goes.

    The video that comes out is the one without the cache. Costs both together.

    Args:
        cache: what is timed.
        synchronize, clock: see `PairedSteps`.
    """

    def __init__(
        self,
        cache: _Cache,
        synchronize: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cache = cache
        super().__init__(cache.policy, synchronize, clock)

    def reset(self) -> None:
        """Forget every measurement, and what the cache stored."""
        self._cache.reset()
        super().reset()

    def at(self, step: int, branch: str = "both") -> Loop:
        """The block loop of `step`."""
        cached = self._cache.at(step, branch)

        def loop(layers: Layers, x: Any) -> Any:
            return self.run(step, lambda: run_all(layers, x), lambda: cached(layers, x))

        return loop
