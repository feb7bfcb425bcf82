"""The one way to measure for every search: videos made in another way, against the original's.

Everything measured goes into the ledger at once, so that a killed search goes on where it was.
The race compares raw latents, verification decoded frames. No codec is involved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from osp_opt.base.ledger import key_text
from osp_opt.cache.policy import CachePolicy
from osp_opt.generate.measurements import Measurements
from osp_opt.generate.references import LatentStore, References
from osp_opt.options import CacheMemoryOptions
from osp_opt.pipelines.maker import Denoised, Maker, Request
from osp_opt.quality.metrics import SSIM_WINDOW, mse, psnr, ssim
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.tiny.captions import parse
from osp_opt.tiny.checker import check
from osp_opt.tiny.specs import ATTRIBUTES

if TYPE_CHECKING:
    from osp_opt.system.context import WorkerContext

__all__ = ["Trials", "Variant", "policy_key", "schedule_key"]


@dataclass(frozen=True)
class Variant:
    """A way to make videos: in which steps, and with which blocks reused."""

    schedule: TimestepSchedule
    policy: CachePolicy | None = None

    def fields(self) -> dict[str, Any]:
        """What tells it from others, for ledgers."""
        return {
            "schedule": schedule_key(self.schedule),
            "steps": len(self.schedule),
            "uniform": self.schedule.is_uniform,
            "policy": None if self.policy is None else policy_key(self.policy),
        }


def schedule_key(schedule: TimestepSchedule) -> str:
    """A short name of a schedule's content."""
    text = ",".join(f"{t:.4f}" for t in (*schedule.timesteps, *schedule.corrections))
    return f"{len(schedule)}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def policy_key(policy: CachePolicy) -> str:
    """A short name of a policy's content."""
    text = json.dumps(policy.to_json(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Trials:
    """Measures variants of `original` with one model, over all ranks. All methods are collective.

    Args:
        maker: the model.
        original: what they are compared with and timed against.
        memory: where caches keep what they reuse.
    """

    def __init__(
        self,
        maker: Maker,
        original: Variant,
        context: WorkerContext,
        memory: CacheMemoryOptions | None = None,
    ) -> None:
        self.original = original
        self._maker = maker
        self._memory = memory or CacheMemoryOptions()
        self._measured = Measurements(context.run_dir / "trials.jsonl", context)
        self._of = maker.digest(original.schedule)
        self.timed_on = maker.timed_on
        self._parallel = context.parallel
        self._originals = References(
            LatentStore(context.run_dir / "baseline", self._of),
            lambda request: self._make(original, request).latents,
            context,
            "sampling the original",
        )
        self._spent: dict[str, float] = {}
        self._frames: tuple[Request, np.ndarray] | None = None

    @property
    def spent(self) -> float:
        """Work of this search on all ranks, killed runs of it included, in videos of the
        original.
        """
        return sum(self._spent.values())

    def originals(self, requests: Sequence[Request]) -> None:
        """Make the original's videos of `requests`, or find those of an earlier, killed run."""
        self._count_originals(requests)
        self._originals.prepare(requests)

    def errors(self, variants: Sequence[Variant], requests: Sequence[Request]) -> list[float]:
        """Mean squared error of the latents of variants[i] on requests[i]."""

        def measure(i: int) -> dict[str, Any]:
            made = self._make(variants[i], requests[i])
            error = mse(made.latents.cpu(), self._originals[requests[i]])
            return {"mse": error, "seconds": made.seconds}

        what = "sampling candidates"
        return [float(v["mse"]) for v in self._of_all("error", variants, requests, measure, what)]

    def compared(
        self, variants: Sequence[Variant], requests: Sequence[Request]
    ) -> list[list[dict[str, Any]]]:
        """Frames of each variant on each request, against the original's.

        The result's [v][r] holds psnr (dB), ssim (where the frames are large enough for it), mse
        of latents, seconds of denoising, and, for prompts that the bundled model's checker can
        read, how many attributes are as asked: `right`, and `right_before` of the original.
        """
        pairs = [(variant, request) for request in requests for variant in variants]
        found = self._of_all(
            "frames",
            [variant for variant, _ in pairs],
            [request for _, request in pairs],
            lambda i: self._compared(*pairs[i]),
            "sampling to verify",
        )
        return [found[v :: len(variants)] for v in range(len(variants))]

    def speedups(self, variant: Variant, requests: Sequence[Request]) -> list[float]:
        """Per request, how many times faster `variant` denoises it than the original does.

        Both are timed on it, in turns. Where only a cache differs that is done step by step, which
        a machine that is busy at times disturbs least.
        """

        def measure(i: int) -> dict[str, Any]:
            if variant.schedule == self.original.schedule:
                return {"speedup": self._paired_steps(variant, requests[i])}
            turns = (variant, self.original) if i % 2 else (self.original, variant)
            seconds = {turn: self._make(turn, requests[i]).seconds for turn in turns}
            return {"speedup": seconds[self.original] / seconds[variant]}

        many = [variant] * len(requests)
        found = self._of_all("speed", many, requests, measure, "timing")
        return [float(values["speedup"]) for values in found]

    def once(self, what: str, cost: float, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `measure` found on rank 0, now or in a run that was killed; `cost` as `spent`."""
        key = {"what": what, "of": self._of, "timed_on": self.timed_on}
        self._spent[key_text(key)] = cost
        known = self._measured.recall(key)
        if known is None:
            known = self._parallel.broadcast_object(measure())
            self._measured.record(key, known)
        return known

    def _of_all(
        self,
        what: str,
        variants: Sequence[Variant],
        requests: Sequence[Request],
        measure: Callable[[int], dict[str, Any]],
        label: str,
    ) -> list[dict[str, Any]]:
        """Measure every (variants[i], requests[i]) that the ledger does not hold."""
        keys, costs = [], []
        timed = what == "speed"
        for variant, request in zip(variants, requests, strict=True):
            key = {"what": what, "of": self._of, **variant.fields()}
            if variant.policy is not None:
                key["cache_dtype"] = self._memory.cache_dtype
            if timed:
                key["timed_on"] = self.timed_on
            keys.append({**key, "seed": request.seed, "prompt": request.prompt})
            costs.append(self.cost(variant) + (1.0 if timed else 0.0))
            self._spent[key_text(keys[-1])] = costs[-1]
        if timed:
            return self._measured.of(keys, measure, label, costs=costs)
        self._count_originals(requests)  # those of a killed run too
        return self._measured.of(
            keys, measure, label, lambda todo: self.originals([requests[i] for i in todo]), costs
        )

    def _count_originals(self, requests: Sequence[Request]) -> None:
        self._spent |= {f"original {r.seed} {r.prompt}": 1.0 for r in requests}

    def cost(self, variant: Variant) -> float:
        """Work of one video, in videos of the original; of blocks, where a cache leaves some out.

        Embeddings and the rest of a step count as blocks do.
        """
        cost = len(variant.schedule) / len(self.original.schedule)
        if variant.policy is None:
            return cost
        calls = len(self._maker.call_timesteps(variant.schedule))
        return cost / variant.policy.speedup(self._maker.num_blocks, calls)

    def _compared(self, variant: Variant, request: Request) -> dict[str, Any]:
        before = self._frames_of_original(request)
        made = self._make(variant, request)
        after = self._maker.decode(made.latents, request.seed)
        values: dict[str, Any] = {
            "psnr": psnr(after, before),
            "mse": mse(made.latents.cpu(), self._originals[request]),
            "seconds": made.seconds,
        }
        if min(after.shape[1:3]) >= SSIM_WINDOW:
            values["ssim"] = ssim(after, before)
        if parse(request.prompt) is not None:
            values["right"] = _right(after, request.prompt)
            values["right_before"] = _right(before, request.prompt)
        return values

    def _frames_of_original(self, request: Request) -> np.ndarray:
        """Decoded once for all variants that are compared with it, one after the other."""
        if self._frames is None or self._frames[0] != request:
            self._frames = request, self._maker.decode(self._originals[request], request.seed)
        return self._frames[1]

    def _paired_steps(self, variant: Variant, request: Request) -> float:
        if variant.policy is None:
            return 1.0
        return self._maker.cached_speedup(request, variant.schedule, variant.policy, self._memory)

    def _make(self, variant: Variant, request: Request) -> Denoised:
        return self._maker.denoise(request, variant.schedule, self._cache(variant))

    def _cache(self, variant: Variant) -> Any:
        if variant.policy is None:
            return None
        return self._maker.block_cache(variant.policy, self._memory)


def _right(video: np.ndarray, prompt: str) -> int:
    """How many attributes are as asked."""
    result = check(video, prompt)
    return sum(getattr(result, name).right for name in ATTRIBUTES)
