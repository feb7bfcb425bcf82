"""The one way to measure for every search: videos made in another way, against the original's.

Everything measured goes into the ledger at once, so that a killed search goes on where it was.
The race compares raw latents, verification decoded frames. No codec is involved.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from osp_opt.base.ledger import key_text
from osp_opt.cache.policy import CachePolicy
from osp_opt.generate.measurements import Measurements
from osp_opt.generate.references import LatentStore, References
from osp_opt.options import CacheMemoryOptions
from osp_opt.pipelines.maker import Denoised, Maker, Request
from osp_opt.quality.metrics import SSIM_WINDOW, mse, psnr, ssim
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.race import Pair
from osp_opt.system.context import WorkerContext
from osp_opt.system.parallel import Parallel
from osp_opt.tiny.captions import parse
from osp_opt.tiny.checker import check
from osp_opt.tiny.specs import ATTRIBUTES

__all__ = ["Trials", "Variant", "policy_key", "racing", "schedule_key"]

TIMED_STEPS = 10  # of the original, before and behind each video that is timed


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

    Few videos are each made by several ranks rather than leave some idle. What is timed is made in
    the layout of the command alone (`--parallel`, else one rank per video, as `sample` makes many):
    times of an interval have to be of one layout, and of the same when a killed search goes on.

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
        self._own = maker
        self._maker = maker  # in the layout of what is being made
        self._memory = memory or CacheMemoryOptions()
        self._measured = Measurements(context.run_dir / "trials.jsonl", context)
        self._of = maker.digest(original.schedule)
        self.timed_on = maker.timed_on
        self._parallel = context.parallel
        self._context = context
        self._references = {original: self._kept("baseline", original, "sampling the original")}
        self._spent: dict[str, float] = {}
        self._frames: dict[Variant, tuple[Request, np.ndarray]] = {}

    @property
    def spent(self) -> float:
        """Work of this search on all ranks, killed runs of it included, in videos of the
        original.
        """
        return sum(self._spent.values())

    def references(self, of: Variant, requests: Sequence[Request]) -> None:
        """Make the videos of `requests` that others are compared with, by the original or a finer
        variant, or find those of an earlier, killed run.
        """
        if of not in self._references:
            self._references[of] = self._kept("finer", of, "sampling finer steps")
        self._count_references(of, requests)
        self._references[of].prepare(requests)

    def errors(
        self,
        variants: Sequence[Variant],
        requests: Sequence[Request],
        against: Variant | None = None,
    ) -> list[float]:
        """Mean squared error of the latents of variants[i] on requests[i], `against` the original
        or a finer variant.
        """
        reference = against or self.original

        def measure(i: int) -> dict[str, Any]:
            made = self._make(variants[i], requests[i])
            error = mse(made.latents.cpu(), self._references[reference][requests[i]])
            return {"mse": error}

        what = "sampling candidates"
        found = self._of_all("error", variants, requests, measure, what, [reference])
        return [float(values["mse"]) for values in found]

    def compared(
        self,
        variants: Sequence[Variant],
        requests: Sequence[Request],
        finer: Variant | None = None,
    ) -> list[list[dict[str, Any]]]:
        """Frames of each variant on each request, against the original's.

        The result's [v][r] holds psnr (dB), ssim (where the frames are large enough for it), mse
        of latents, and, for prompts that the bundled model's checker can read, how many attributes
        are as asked: `right`, and `right_before` of the original. With
        `finer`, which stands for the converged video, also converged_psnr and converged_mse, and
        converged_psnr_before of the original.
        """
        pairs = [(variant, request) for request in requests for variant in variants]
        found = self._of_all(
            "frames",
            [variant for variant, _ in pairs],
            [request for _, request in pairs],
            lambda i: self._compared(*pairs[i], finer),
            "sampling to verify",
            [self.original] if finer is None else list(dict.fromkeys([self.original, finer])),
        )
        return [found[v :: len(variants)] for v in range(len(variants))]

    def speedups(self, variant: Variant, requests: Sequence[Request]) -> list[float]:
        """Per request, how many times faster `variant` denoises it than the original does.

        Where only reused blocks differ both are timed step by step, in turns, which a machine that
        is busy at times disturbs least; else a few of the original's steps right before the
        variant's video and right behind it.
        """

        def measure(i: int) -> dict[str, Any]:
            if self._steps_can_be_paired(variant):
                return {"speedup": self._paired_steps(variant, requests[i])}
            before = self._original_seconds(requests[i])
            seconds = self._make(variant, requests[i]).seconds
            return {"speedup": (before + self._original_seconds(requests[i])) / 2.0 / seconds}

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
        against: Sequence[Variant] = (),
    ) -> list[dict[str, Any]]:
        """Measure every (variants[i], requests[i]) that the ledger does not hold, `against` videos
        that are made first.
        """
        keys, costs = [], []
        timed = what == "speed"
        finer = [schedule_key(each.schedule) for each in against if each != self.original]
        for variant, request in zip(variants, requests, strict=True):
            key = {"what": what, "of": self._of, **variant.fields()}
            if variant.policy is not None:
                key["cache_dtype"] = self._memory.cache_dtype
            if finer:
                key["finer"] = finer[0]
            if timed:
                key["timed_on"] = self.timed_on
            keys.append({**key, "seed": request.seed, "prompt": request.prompt})
            costs.append(self.cost(variant) + (self._timing_cost(variant) if timed else 0.0))
            self._spent[key_text(keys[-1])] = costs[-1]
        for each in against:
            self._count_references(each, requests)  # those of a killed run too

        def prepare(todo: Sequence[int]) -> None:
            for each in against:
                self.references(each, [requests[i] for i in todo])

        def layout(todo: list[int]) -> Parallel:
            if timed:
                self._maker = self._own
                return self._parallel
            return self._laid_out([variants[i] for i in todo])

        return self._measured.of(keys, measure, label, prepare, costs, layout)

    def _laid_out(self, videos: Sequence[Variant]) -> Parallel:
        """The ranks, and the maker with them, laid out for a video of each of these variants."""
        policies = [v.policy for v in videos if v.policy is not None and v.policy.guidance]
        self._maker, context = self._own.with_layout(
            self._context, len(videos), policies[0] if policies else None
        )
        return context.parallel

    def _count_references(self, of: Variant, requests: Sequence[Request]) -> None:
        name, cost = schedule_key(of.schedule), self.cost(of)
        self._spent |= {f"reference {name} {r.seed} {r.prompt}": cost for r in requests}

    def _kept(self, folder: str, variant: Variant, what: str) -> References:
        """The videos of `variant`, in files of the run folder."""
        return References(
            LatentStore(self._context.run_dir / folder, self._maker.digest(variant.schedule)),
            lambda request: self._make(variant, request).latents,
            self._context,
            what,
            lambda videos: self._laid_out([variant] * videos),
            self.cost(variant),
        )

    def _timing_cost(self, variant: Variant) -> float:
        if self._steps_can_be_paired(variant):
            return 1.0
        return 2.0 * min(TIMED_STEPS, len(self.original.schedule)) / len(self.original.schedule)

    def cost(self, variant: Variant) -> float:
        """Work of one video, in videos of the original; of blocks, where a cache leaves some out.

        Embeddings and the rest of a step count as blocks do.
        """
        cost = len(variant.schedule) / len(self.original.schedule)
        if variant.policy is None:
            return cost
        calls = len(self._maker.call_timesteps(variant.schedule))
        return cost / variant.policy.speedup(self._maker.num_blocks, calls)

    def _compared(
        self, variant: Variant, request: Request, finer: Variant | None
    ) -> dict[str, Any]:
        before = self._frames_of(self.original, request)
        made = self._make(variant, request)
        after = self._maker.decode(made.latents, request.seed)
        values: dict[str, Any] = {
            "psnr": psnr(after, before),
            "mse": mse(made.latents.cpu(), self._references[self.original][request]),
        }
        if min(after.shape[1:3]) >= SSIM_WINDOW:
            values["ssim"] = ssim(after, before)
        if parse(request.prompt) is not None:
            values["right"] = _right(after, request.prompt)
            values["right_before"] = _right(before, request.prompt)
        if finer is not None:
            converged = self._frames_of(finer, request)
            values["converged_psnr"] = psnr(after, converged)
            values["converged_psnr_before"] = psnr(before, converged)
            values["converged_mse"] = mse(made.latents.cpu(), self._references[finer][request])
        return values

    def _frames_of(self, reference: Variant, request: Request) -> np.ndarray:
        """Decoded once for all variants that are compared with it, one after the other."""
        held = self._frames.get(reference)
        if held is None or held[0] != request:
            held = request, self._maker.decode(self._references[reference][request], request.seed)
            self._frames[reference] = held
        return held[1]

    def _original_seconds(self, request: Request) -> float:
        """Seconds of the original's video, from a few of its steps, which all cost the same but
        the first, in which a video's own preparation falls.
        """
        steps = len(self.original.schedule)
        some = min(TIMED_STEPS, steps)
        ends: list[float] = []

        def step_ended(done: int, total: int) -> None:
            self._maker.device.synchronize()
            ends.append(time.perf_counter())

        made = self._maker.denoise(
            request, self._maker.schedule(some), self._cache(self.original), step_ended
        )
        if some == steps:
            return made.seconds
        return made.seconds + (steps - some) * (ends[-1] - ends[0]) / (len(ends) - 1)

    def _steps_can_be_paired(self, variant: Variant) -> bool:
        """Whether only reused blocks tell it from the original."""
        reuses_guidance = variant.policy is not None and variant.policy.guidance is not None
        return variant.schedule == self.original.schedule and not reuses_guidance

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


def racing(
    trials: Trials,
    variants: Sequence[Variant],
    requests: Sequence[Request],
    against: Variant | None = None,
) -> Callable[[Sequence[Pair]], list[float]]:
    """What `race` measures with: the errors of (variant, request) pairs, given by their numbers,
    `against` as in `Trials.errors`.
    """

    def measure(pairs: Sequence[Pair]) -> list[float]:
        return trials.errors(
            [variants[v] for v, _ in pairs], [requests[r] for _, r in pairs], against
        )

    return measure


def _right(video: np.ndarray, prompt: str) -> int:
    """How many attributes are as asked."""
    result = check(video, prompt)
    return sum(getattr(result, name).right for name in ATTRIBUTES)
