"""What a cache search knows: the model, the statistics, block times, and who is worth racing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from osp_opt.calibration.deciding import deciding_requests
from osp_opt.calibration.source import Source
from osp_opt.options import SearchCacheOptions
from osp_opt.pipelines.maker import Maker, Request
from osp_opt.quality.yardstick import Yardstick
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.cache.block_times import (
    BlockTimes,
    reuses_guidance,
    times_here,
)
from osp_opt.search.cache.candidates import Candidate, four_field_candidates, intervals_of
from osp_opt.search.cache.plans import free_candidates
from osp_opt.search.cache.probes import Probe, importance_probes, measured_importance
from osp_opt.search.cache.rival_rules import Rule, rule_of
from osp_opt.search.cache.rivals import rival_work
from osp_opt.search.cache.runs import LAGS
from osp_opt.search.cache.scores import ReuseErrors, four_field_scores, gaussian_importance
from osp_opt.search.cost import say_cost
from osp_opt.search.evidence import TIMED_VIDEOS
from osp_opt.search.race import RaceResult, affordable, race
from osp_opt.search.trials import Trials, Variant, racing
from osp_opt.system.context import WorkerContext

__all__ = ["CacheSearch", "open_search"]

CANDIDATES = 12
RACE_VIDEOS = 16  # more than any budget lets a race use


@dataclass(frozen=True)
class CacheSearch:
    """One search. `samples` says whether videos may be made; without them nothing is raced."""

    options: SearchCacheOptions
    context: WorkerContext
    maker: Maker
    schedule: TimestepSchedule
    errors: ReuseErrors
    gaussian: np.ndarray
    trials: Trials
    times: BlockTimes
    samples: bool
    race_requests: tuple[Request, ...]
    fresh_requests: tuple[Request, ...]
    yardstick: Yardstick | None
    rules: tuple[Rule, ...] = ()

    @property
    def say(self) -> Callable[[str], None]:
        """Tell the user a line (rank 0)."""
        return self.context.progress.say

    @property
    def num_steps(self) -> int:
        """Network evaluations of a branch: the steps as a cache counts them."""
        return self.errors.num_steps

    @property
    def budget(self) -> float:
        """What the race may spend, in videos without cache, once the probes are paid."""
        return max(1.0, self.options.budget - len(self._probes))

    def variant(self, candidate: Candidate) -> Variant:
        """What is sampled of a candidate."""
        return Variant(self.schedule, candidate.policy)

    @cached_property
    def _probes(self) -> list[Probe]:
        return importance_probes(self.errors)

    @cached_property
    def importance(self) -> np.ndarray:
        """What an error at each step does to the result, [S]; measured if sampling is allowed."""
        if not self.samples:
            return self.gaussian
        requests = [self.race_requests[0]] * len(self._probes)
        variants = [Variant(self.schedule, probe.policy) for probe in self._probes]
        measured = self.trials.errors(variants, requests)
        return measured_importance(self.errors, self._probes, measured)

    @cached_property
    def scores(self) -> np.ndarray:
        """Of every four-field policy."""
        return four_field_scores(self.errors, self.importance, intervals_of(self.num_steps))

    def candidates(self, ratio: float, limit: int = CANDIDATES) -> list[Candidate]:
        """The best-scored policies predicted to reach `ratio`. Raises PolicyError when none is."""
        found = four_field_candidates(self.scores, self.times, self.num_steps, ratio, limit)
        if self.options.policy == "free":
            guided = reuses_guidance(self.maker, self.context.parallel)
            free = free_candidates(
                self.errors, self.importance, self.times, ratio, limit, guided=guided
            )
            found = [*free, *found][: limit + 2]  # the best four-field ones stay in the race
        return found

    def race(self, candidates: list[Candidate], budget: float) -> RaceResult:
        """Sample the candidates against each other on the race's prompts."""
        variants = [self.variant(candidate) for candidate in candidates]
        costs = [1.0 / candidate.speedup for candidate in candidates]
        costs = costs[: affordable(costs, budget)]
        measure = racing(self.trials, variants, self.race_requests)
        return race(costs, len(self.race_requests), budget, measure, baseline_cost=1.0)


def open_search(source: Source[SearchCacheOptions]) -> CacheSearch:
    """The statistics at the steps of the cache, the model, and what its blocks cost here."""
    # The statistics, at the steps that the cache is for.
    options, context, maker = source.options, source.context, source.maker()
    schedule = (
        maker.schedule(options.steps)
        if options.schedule is None
        else TimestepSchedule.from_file(options.schedule, maker.scale)
    )
    timesteps = maker.call_timesteps(schedule)
    lags = min(LAGS, len(timesteps) - 1)
    errors = ReuseErrors.of(source.calibration, timesteps, lags)
    ancestral = maker.kind.ancestral
    gaussian = gaussian_importance(source.calibration, timesteps, ancestral=ancestral)

    blocks = maker.num_blocks
    rules = tuple(rule_of(name, source.calibration, timesteps, blocks) for name in options.also)

    # The videos that choose, and those that judge; what they will cost.
    samples = options.verifies or options.max_loss is not None
    fresh = options.verify_prompts if samples else 0
    found = deciding_requests(
        options, source.calibration, race=RACE_VIDEOS if samples else 1, fresh=fresh
    )
    if found.note:
        context.progress.say(found.note)
    if samples:
        timed = 2.0 * min(TIMED_VIDEOS, fresh)
        others = rival_work(len(rules), fresh)
        say_cost(context, source, options.budget, 2.0 * fresh + timed + others)
    prompts = [request.prompt for request in (*found.race, *found.fresh)]
    maker.prefetch_prompts(prompts)

    # What blocks cost here, and, where it may be reused, guidance.
    guidance = options.policy == "free" and reuses_guidance(maker, context.parallel)
    trials = Trials(maker, Variant(schedule), context, options)
    what = "block times with guidance" if guidance else "block times"
    times = times_here(trials, what, maker, schedule, found.race[0], guidance=guidance)
    context.progress.detail(
        f"a step takes {times.step * 1e3:.1f} ms here, "
        f"{100 * sum(times.blocks) / times.step:.0f} % of it in {maker.num_blocks} blocks"
    )
    return CacheSearch(
        options,
        context,
        maker,
        schedule,
        errors,
        gaussian,
        trials,
        times,
        samples,
        found.race,
        found.fresh,
        source.yardstick,
        rules,
    )
