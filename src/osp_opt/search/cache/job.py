"""`osp-opt search-cache`: score policies from the calibration, race the best, deliver the ratio.

Nothing is sampled to prune; what is sampled uses prompts that the calibration did not see, some to
choose and others to measure the winner (speed and error), so that the figures reported are not
those it was chosen by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from osp_opt import __version__
from osp_opt.base.artifacts import beside_others, write_meta
from osp_opt.base.errors import CalibrationError, PolicyError
from osp_opt.base.samplers import SAMPLER_KINDS
from osp_opt.calibration.deciding import deciding_requests
from osp_opt.calibration.source import open_source
from osp_opt.generate.maker import Request
from osp_opt.generate.memory import report_memory
from osp_opt.options import SearchCacheOptions
from osp_opt.quality.intervals import Interval, ratio_ci
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.cache.block_times import BlockTimes
from osp_opt.search.cache.candidates import (
    MAX_INTERVAL,
    Candidate,
    four_field_candidates,
    largest_ratio,
    spread_candidates,
)
from osp_opt.search.cache.check import PredictorCheck, check_predictor
from osp_opt.search.cache.plans import free_candidates
from osp_opt.search.cache.probes import importance_probes, measured_importance
from osp_opt.search.cache.quality import Quality, measure_quality
from osp_opt.search.cache.scores import (
    ReuseErrors,
    four_field_scores,
    gaussian_importance,
)
from osp_opt.search.cache.trials import CacheTrials, Pair, policy_key
from osp_opt.search.race import RaceResult, affordable, race
from osp_opt.search.random import search_rng
from osp_opt.system.timing import speedup as paired_speedup

if TYPE_CHECKING:
    from osp_opt.system.context import WorkerContext

__all__ = ["run"]

CANDIDATES = 12
TOLERANCE = 0.03  # a measured ratio may fall short of the wanted one by so much
ATTEMPTS = 3  # policies that are timed before the ratio counts as not delivered
TIMED_VIDEOS = 2  # of the race, on which speed is measured, step by step
JUDGED_VIDEOS = 3  # fresh ones, likewise: the speed that is told
CHECKED = 6  # policies of all costs, sampled to see whether the score ranks them
NOTABLE_LOSS = 0.01  # of quality: a policy that loses more is not written without a word


@dataclass(frozen=True)
class _Winner:
    """A policy that was chosen, and what was measured of it (None: not verified).

    speedup: of denoising, from steps timed in pairs, which is what counts; whole_videos: the same
    from videos timed one after the other, which a busy machine disturbs.
    """

    candidate: Candidate
    speedup: Interval | None = None
    whole_videos: Interval | None = None
    quality: Quality | None = None
    predictor: PredictorCheck | None = None


def run(options: SearchCacheOptions, context: WorkerContext) -> None:
    """Search, verify, and write the policy with its provenance; print what it gives."""
    search = _Search(options, context)
    if options.max_loss is not None:
        winner = search.fastest_within(options.max_loss)
    elif search.verifies:
        winner = search.deliver(options.ratio)
    else:
        winner = _Winner(search.candidates(options.ratio, 1)[0])
    if context.parallel.is_main:
        search.write(winner)
    context.parallel.barrier()
    report_memory(search.maker, context)


class _Search:
    """The state of one search: model, schedule, statistics, block times."""

    def __init__(self, options: SearchCacheOptions, context: WorkerContext) -> None:
        source = open_source(options, context)
        self.options = options = source.options
        self.context = context
        self.say = context.progress.say
        self.maker = source.maker()
        self.schedule = (
            TimestepSchedule.uniform(options.steps)
            if options.schedule is None
            else TimestepSchedule.from_file(options.schedule)
        )
        timesteps = self.maker.call_timesteps(self.schedule)
        self.num_steps = len(timesteps)
        self.verifies = options.model_path is None if options.verify is None else options.verify
        calibration = source.calibration
        self.errors = ReuseErrors.of(calibration, timesteps, min(MAX_INTERVAL, self.num_steps) - 1)
        if self.errors.num_blocks != self.maker.num_blocks:
            raise CalibrationError(
                f"{options.calibration_dir}: was recorded on {self.errors.num_blocks} blocks and "
                f"the model has {self.maker.num_blocks}; run osp-opt calibrate with this model"
            )
        self._gaussian_importance = gaussian_importance(
            calibration, timesteps, ancestral=SAMPLER_KINDS[self.maker.options.sampler].ancestral
        )
        count = options.verify_prompts
        judging = count if self.verifies or options.max_loss is not None else 0
        found = deciding_requests(options, calibration, race=count, fresh=judging)
        self.race_requests, self.fresh_requests = found.race[:count], found.fresh
        if found.note:
            self.say(found.note)
        prompts = [request.prompt for request in (*self.race_requests, *self.fresh_requests)]
        self.maker.prefetch_prompts(prompts)
        self.trials = CacheTrials(self.maker, self.schedule, options, context)
        self.times: BlockTimes = self.trials.block_times(self.race_requests[0])
        self.say(
            f"a step takes {self.times.step * 1e3:.1f} ms here, "
            f"{100 * sum(self.times.blocks) / self.times.step:.0f} % of it in "
            f"{self.maker.num_blocks} blocks"
        )

    @cached_property
    def importance(self) -> np.ndarray:
        """What an error at each step does to the result, [S]; measured if sampling is allowed."""
        if not self.verifies and self.options.max_loss is None:
            return self._gaussian_importance
        request = self.race_requests[0]
        probes = importance_probes(self.num_steps, self.maker.num_blocks)
        policies = [probe.policy for probe in probes]
        self.trials.baseline([request])
        measured = self.trials.errors(policies, [request] * len(probes))
        return measured_importance(self.errors, probes, measured)

    @cached_property
    def scores(self) -> np.ndarray:
        """Of every four-field policy."""
        intervals = range(2, min(MAX_INTERVAL, self.num_steps) + 1)
        return four_field_scores(self.errors, self.importance, intervals)

    def candidates(self, ratio: float, limit: int = CANDIDATES) -> list[Candidate]:
        """The best-scored policies predicted to reach `ratio`. Raises PolicyError when none is."""
        found = four_field_candidates(self.scores, self.times, self.num_steps, ratio, limit)
        if self.options.policy == "free":
            free = free_candidates(self.errors, self.importance, self.times, ratio, limit)
            found = [*free, *found][: limit + 2]  # the best four-field ones stay in the race
        return found

    def race(self, candidates: list[Candidate], budget: float) -> RaceResult:
        """Sample the candidates against each other on the race's prompts."""
        costs = [1.0 / candidate.speedup for candidate in candidates]
        costs = costs[: affordable(costs, budget)]
        requests = self.race_requests
        self.trials.baseline(requests)

        def measure(pairs: list[tuple[int, int]]) -> list[float]:
            policies = [candidates[c].policy for c, _ in pairs]
            return self.trials.errors(policies, [requests[p] for _, p in pairs])

        return race(costs, len(requests), budget, measure)

    def deliver(self, ratio: float) -> _Winner:
        """The best measured policy whose measured speed-up is `ratio` (within the tolerance)."""
        size = len(self.race_requests)
        # One generation is the whole prompt set. Uncached videos, what is sampled of the winner,
        # the probes and the check of the score come off the budget first.
        budget = (self.options.budget - 1.0) * size
        budget -= 2.0 * (size + TIMED_VIDEOS + JUDGED_VIDEOS)
        budget -= len(importance_probes(self.num_steps, self.maker.num_blocks))
        checks = CHECKED if budget > 3.0 * CHECKED else 0
        budget -= checks
        wanted, measured = ratio, 0.0
        for attempt in range(ATTEMPTS):
            candidates = self.candidates(wanted)
            raced = self.race(candidates, max(budget if attempt == 0 else size, 1.0))
            chosen = candidates[raced.winner]
            self.say(f"raced {len(raced.errors)} candidates; the best: {chosen.policy}")
            measured = self.speed_in_race(chosen)
            forced = self.options.force and attempt == ATTEMPTS - 1
            if measured >= ratio * (1.0 - TOLERANCE) or forced:
                # What was taken because it was fast enough here is timed anew on other videos.
                winner = self.judged(chosen, self.fresh_requests)
                return replace(winner, predictor=self.check(candidates, raced, checks))
            self.say(
                f"measured {measured:.3f}x where {chosen.speedup:.3f}x was predicted; "
                "taking a larger one"
            )
            wanted = min(
                wanted * ratio / measured * 1.005, largest_ratio(self.times, self.num_steps)[0]
            )
        raise PolicyError(
            f"--ratio {ratio:g}: measured {measured:.3f}x after {ATTEMPTS} attempts; the machine "
            "may be busy: try again, or write it all the same with --force"
        )

    def check(self, candidates: list[Candidate], raced: RaceResult, count: int) -> PredictorCheck:
        """Whether the score ranked the race's candidates, and `count` policies of all costs."""
        rng = search_rng(self.options.seed, "predictor")
        spread: list[Candidate] = []
        if count:
            spread = spread_candidates(self.scores, self.times, self.num_steps, count, rng)
        policies = [candidate.policy for candidate in spread]
        errors = self.trials.errors(policies, [self.race_requests[0]] * len(spread))
        found = check_predictor(candidates, raced.errors, spread, errors, self.num_steps)
        for line in found.lines():
            self.say(line)
        return found

    def speed_in_race(self, chosen: Candidate) -> float:
        """The speed-up of `chosen` on videos of the race: what decides whether it is taken."""
        timed = self.race_requests[:TIMED_VIDEOS]
        key = {"what": "speed", "policy": policy_key(chosen.policy), "on": _named(timed)}
        values = self.trials.recall(key)
        if values is None:
            values = {"speedups": self.trials.step_speedups(chosen.policy, timed)}
            self.trials.record(key, values)
        return ratio_ci(values["speedups"]).estimate

    def judged(self, chosen: Candidate, requests: Sequence[Request]) -> _Winner:
        """Speed and loss of `chosen` on `requests`, against no cache."""
        key = {"what": "judged", "policy": policy_key(chosen.policy), "on": _named(requests)}
        values = self.trials.recall(key)
        if values is None:
            timed = requests[:JUDGED_VIDEOS]
            speedups = self.trials.step_speedups(chosen.policy, timed)
            pairs = self.trials.timed_pairs(chosen.policy, requests)
            values = {
                "pairs": len(pairs) + len(speedups),
                "speedup": ratio_ci(speedups).as_json(),
                "speedup_of_whole_videos": _speedup(pairs).as_json(),
                **measure_quality(pairs, self.maker).as_json(),
            }
            self.trials.record(key, values)
        self.trials.count_pairs(chosen.policy, int(values["pairs"]))
        return _Winner(
            chosen,
            Interval.from_json(values["speedup"]),
            Interval.from_json(values["speedup_of_whole_videos"]),
            Quality.from_json(values),
        )

    def fastest_within(self, max_loss: float) -> _Winner:
        """The fastest policy that loses at most `max_loss`: chosen on the race's videos by
        bisection of ratios, judged on fresh ones.

        Where those do not show it, the most careful policy that was tried is taken.
        """
        largest = largest_ratio(self.times, self.num_steps)[0]
        low, high = 1.05, largest
        within: list[Candidate] = []
        while high / low > 1.08:
            ratio = min((low * high) ** 0.5, 0.999 * largest)
            candidates = self.candidates(ratio, 4)
            chosen = candidates[self.race(candidates, 6.0).winner]
            quality = self.judged(chosen, self.race_requests).quality
            assert quality is not None
            self.say(f"{chosen.speedup:.2f}x predicted: {quality.loss.line()}")
            if quality.loss.share.estimate <= max_loss:
                within.append(chosen)
                low = ratio
            else:
                high = ratio
        if not within:
            raise PolicyError(
                f"--max-loss {100 * max_loss:g}%: no policy tried stays below it; "
                "allow more, or use more steps"
            )
        winner = self.judged(within[-1], self.fresh_requests)
        assert winner.quality is not None
        verdict = winner.quality.loss.verdict(max_loss)
        self.say(f"{verdict}: {winner.quality.loss.line()}, on fresh prompts")
        if verdict == "kept" or self.options.force or len(within) == 1:
            return winner
        self.say("taking the most careful policy that was tried")
        return self.judged(within[0], self.fresh_requests)

    def write(self, winner: _Winner) -> None:
        """Write the policy and its provenance; print the summary."""
        path, meta = self.options.policy_path, self._meta(winner)
        if self.options.out != path:  # a file that was named is that file
            path = beside_others(path, meta["asked"], "-".join(map(str, meta["asked"].values())))
        policy = winner.candidate.policy
        policy.save(path)
        write_meta(path, meta)
        self.say(f"cache policy: {policy} -> {path}")
        for line in policy.warnings():
            self.say(f"warning: {line}")
        if not policy.is_four_field:
            self.say(
                "only osp-opt reads this form of policy (the reference tool reads four fields)"
            )
        self.say(f"predicted speed-up of denoising: {winner.candidate.speedup:.3f}x")
        if winner.speedup is None or winner.quality is None:
            self.say("not verified by sampling (--verify does)")
            return
        told = winner.speedup.text(digits=3, unit="x")
        self.say(f"measured speed-up of denoising: {told}, from steps timed in pairs")
        if winner.whole_videos is not None:
            told = winner.whole_videos.text(digits=3, unit="x")
            self.say(f"  whole videos one after the other, by the clock: {told}")
        for line in winner.quality.lines():
            self.say(line)
        if winner.quality.loss.verdict(self.options.max_loss or NOTABLE_LOSS) == "lost":
            self.say("warning: --max-loss 1% finds the fastest policy that loses less")
        self.say(f"work spent on sampling: {self._generations():.1f} generations of the prompt set")

    def _generations(self) -> float:
        return self.trials.spent / len(self.race_requests)

    def _asked(self) -> dict[str, Any]:
        """What tells this search's result from others in the same folder."""
        limit = self.options.max_loss
        goal = f"{self.options.ratio:g}x" if limit is None else f"{100 * limit:g}%"
        return {"policy": self.options.policy, "goal": goal, "steps": f"{self.num_steps}steps"}

    def _meta(self, winner: _Winner) -> dict[str, Any]:
        meta: dict[str, Any] = {
            "made_by": f"osp-opt {__version__} search-cache",
            "asked": self._asked(),
            "setting": self.maker.setting(self.schedule).as_json(),
            "schedule_file": None if self.options.schedule is None else str(self.options.schedule),
            "policy": str(winner.candidate.policy),
            "device": self.context.device.name,
            "block_times_seconds": self.times.as_json(),
            "predicted_speedup": winner.candidate.speedup,
            "step_importance": [float(value) for value in self.importance],
            "generations_spent": self._generations(),
        }
        if winner.speedup is not None and winner.quality is not None:
            meta["measured"] = {"speedup": winner.speedup.as_json(), **winner.quality.as_json()}
            if winner.whole_videos is not None:
                meta["measured"]["speedup_of_whole_videos"] = winner.whole_videos.as_json()
            meta["predictor"] = None if winner.predictor is None else winner.predictor.as_json()
            meta["verified_on"] = [
                {"prompt": r.prompt, "seed": r.seed} for r in self.fresh_requests
            ]
        return meta


def _named(requests: Sequence[Request]) -> list[list[Any]]:
    return [[request.prompt, request.seed] for request in requests]


def _speedup(pairs: Sequence[Pair]) -> Interval:
    return paired_speedup(
        [pair.plain_seconds for pair in pairs], [pair.cached_seconds for pair in pairs]
    )
