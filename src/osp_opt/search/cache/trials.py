"""Real sampling for the cache search: errors against the uncached video, and timed pairs.

Everything measured goes into the ledger at once, so that a killed search goes on where it was.
Errors are of raw latents; no codec is involved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from osp_opt.base.ledger import key_text
from osp_opt.cache.policy import CachePolicy
from osp_opt.generate.maker import Request, VideoMaker
from osp_opt.generate.measurements import Measurements
from osp_opt.generate.references import LatentStore, References
from osp_opt.options import CacheMemoryOptions
from osp_opt.quality.metrics import mse
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.cache.block_times import BlockTimer, BlockTimes
from osp_opt.search.cache.paired_steps import PairedTimer

if TYPE_CHECKING:
    from osp_opt.system.context import WorkerContext

__all__ = ["CacheTrials", "Pair", "policy_key"]

TIMED_STEPS = 24  # of the schedule's first steps, to time the blocks
WARM_STEPS = 3


def policy_key(policy: CachePolicy) -> str:
    """A short name of a policy's content, for ledgers."""
    text = json.dumps(policy.to_json(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Pair:
    """One fresh video, sampled without and with the cache, one right after the other."""

    request: Request
    plain: Tensor
    cached: Tensor
    plain_seconds: float
    cached_seconds: float

    @property
    def mse(self) -> float:
        """Mean squared error of the scaled latents."""
        return mse(self.cached, self.plain)


class CacheTrials:
    """Measures policies for one model and schedule, over all ranks."""

    def __init__(
        self,
        maker: VideoMaker,
        schedule: TimestepSchedule,
        options: CacheMemoryOptions,
        context: WorkerContext,
    ) -> None:
        self._options = options
        self._maker = maker
        self._schedule = schedule
        self._timesteps = maker.call_timesteps(schedule)
        self._parallel = context.parallel
        self._progress = context.progress
        self._measured = Measurements(context.run_dir / "trials.jsonl", context)
        self._of = maker.digest(schedule)
        self._clock = {"of": self._of, "layout": str(context.parallel.layout)}
        self._plain = References(
            LatentStore(context.run_dir / "baseline", self._of),
            lambda request: self._sample(request, None).latents,
            context,
            "sampling without cache",
        )
        self._spent: dict[Any, float] = {}

    @property
    def spent(self) -> float:
        """Work of this search on all ranks, killed runs of it included, in uncached videos."""
        return sum(self._spent.values())

    def block_times(self, request: Request) -> BlockTimes:
        """Seconds per block and of the rest of a step, measured here (rank 0's count).

        A search that is resumed uses those it began with: its candidates stay the same.
        """
        known = self.recall({"what": "block times"})
        self._spent["block times"] = (WARM_STEPS + TIMED_STEPS) / len(self._schedule)
        if known is None:
            timer = BlockTimer(self._maker.device.synchronize)
            self._maker.denoise(request, self._first(WARM_STEPS), timer)
            self._maker.denoise(request, self._first(TIMED_STEPS), timer)
            known = self._parallel.broadcast_object(timer.result().as_json())
            self.record({"what": "block times"}, known)
        return BlockTimes(tuple(known["blocks"]), known["rest"], known["add"])

    def baseline(self, requests: Sequence[Request]) -> None:
        """Sample the uncached videos of `requests`, or find those of an earlier, killed run."""
        self._spent |= dict.fromkeys(requests, 1.0)
        self._plain.prepare(requests)

    def errors(self, policies: Sequence[CachePolicy], requests: Sequence[Request]) -> list[float]:
        """Latent MSE of policies[i] on requests[i], each against its uncached video."""
        keys = [
            {
                "what": "error",
                "of": self._of,
                "policy": policy_key(policy),
                "cache_dtype": self._options.cache_dtype,
                "seed": request.seed,
                "prompt": request.prompt,
            }
            for policy, request in zip(policies, requests, strict=True)
        ]
        self._spent |= {key_text(k): self._cost(p) for k, p in zip(keys, policies, strict=True)}

        def measure(i: int) -> dict[str, Any]:
            made = self._sample(requests[i], policies[i])
            error = mse(made.latents.cpu(), self._plain[requests[i]])
            return {"mse": error, "seconds": made.seconds}

        found = self._measured.of(
            keys,
            measure,
            "sampling with cache candidates",
            lambda todo: self.baseline([requests[i] for i in todo]),
        )
        return [float(values["mse"]) for values in found]

    def step_speedups(self, policy: CachePolicy, requests: Sequence[Request]) -> list[float]:
        """Per request the speed-up of denoising, from steps run without and with the cache."""
        cache = self._maker.block_cache(policy, self._options)
        timer = PairedTimer(cache, self._maker.device.synchronize)
        found = []
        mine = self._parallel.share(requests)
        with self._progress.task("timing steps without and with the cache", len(mine)) as task:
            for request in mine:
                self._maker.denoise(request, self._schedule, timer)
                found.append(timer.speedup(len(self._timesteps)))
                task.advance()
        return self._parallel.gather_shared(found)

    def timed_pairs(self, policy: CachePolicy, requests: Sequence[Request]) -> list[Pair]:
        """Each request without and with the cache, alternately and in turns which goes first."""
        pairs = []
        mine = self._parallel.share(list(enumerate(requests)))
        with self._progress.task("timing without and with the cache", 2 * len(mine)) as task:
            for number, request in mine:
                made = {}
                for cached in (False, True) if number % 2 == 0 else (True, False):
                    made[cached] = self._sample(request, policy if cached else None)
                    task.advance()
                plain, with_cache = made[False], made[True]
                pairs.append(
                    Pair(
                        request,
                        plain.latents.cpu(),
                        with_cache.latents.cpu(),
                        plain.seconds,
                        with_cache.seconds,
                    )
                )
        return self._parallel.gather_shared(pairs)

    def count_pairs(self, policy: CachePolicy, pairs: int) -> None:
        """Add `pairs` timed pairs of `policy`, made now or by a run that was killed, to `spent`."""
        self._spent["pairs", policy_key(policy)] = pairs * (1.0 + self._cost(policy))

    def recall(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """What `record` kept under `key`, in this run or one that was killed; on every rank."""
        return self._measured.recall({**key, **self._clock})

    def record(self, key: Mapping[str, Any], values: dict[str, Any]) -> None:
        """Keep a result of the search itself in the ledger."""
        self._measured.record({**key, **self._clock}, values)

    def _sample(self, request: Request, policy: CachePolicy | None) -> Any:
        cache = None
        if policy is not None:
            cache = self._maker.block_cache(policy, self._options)
        return self._maker.denoise(request, self._schedule, cache)

    def _cost(self, policy: CachePolicy) -> float:
        return 1.0 / policy.speedup(self._maker.num_blocks, len(self._timesteps))

    def _first(self, steps: int) -> TimestepSchedule:
        if self._schedule.is_default:  # samplers with a spacing of their own take no other
            return TimestepSchedule.uniform(steps)
        return TimestepSchedule(self._schedule.timesteps[:steps])
