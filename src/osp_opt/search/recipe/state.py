"""What a search for a recipe knows: the model, the statistics, times, and who is worth racing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from osp_opt.base.errors import OptionError
from osp_opt.base.samplers import SamplerKind
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration.deciding import deciding_requests
from osp_opt.calibration.source import Source
from osp_opt.options import OptimizeOptions
from osp_opt.pipelines.maker import Maker, Request
from osp_opt.quality.metrics import log_error
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.cache.block_times import (
    ALONE_STEPS,
    BLOCK_STEPS,
    BlockTimes,
    reuses_guidance,
    times_here,
)
from osp_opt.search.cache.moves import MOVES, Move, guidance_alone, plan_reuse
from osp_opt.search.cache.runs import LAGS
from osp_opt.search.cache.scores import ReuseErrors, gaussian_importance
from osp_opt.search.cost import say_cost
from osp_opt.search.race import RaceResult, affordable, race
from osp_opt.search.recipe.schedules import CorrectedSchedules
from osp_opt.search.steps.candidates import StepCandidate
from osp_opt.search.trials import TIMED_STEPS, Trials, Variant, racing
from osp_opt.system.context import WorkerContext

__all__ = ["TIMED_VIDEOS", "RecipeCandidate", "RecipeSearch", "open_search"]

FEWEST_STEPS = 4
TIMED_VIDEOS = 2  # of the fresh videos
TIMED_RACED = 1  # of the race: enough to see whether a recipe falls short
RACE_VIDEOS = 16  # more than any budget lets a race use
LEAST_RACE = 3.0  # generations that a race needs to say anything
# What stands for the converged video: times the recipe's steps, to rank recipes and to prove one,
# but no fewer than the original's and no more than so many times those. With fresh noise 1.5 times
# err a fifth of what a recipe of half the steps does (52 dB to 800 steps, 45 dB: 6 prompts of the
# bundled model), which changed its figure by .0 dB; the original's own number would by 2.0 dB, and
# that of a recipe of an eighth by .1.
RANKING, PROVING = 4.0, 6.0
MOST_ANCESTRAL, MOST = 1.5, 2.0
_LATER = 2.5  # places, of a move's next schedule
_SAME = 1e-9  # of two speeds: sums of seconds differ in their last digits
# What a move adds to the log error, roughly: about 30 planned steps of the bundled model were .6
# (7 prompts) and .2 (24) further from the converged video with the negative branch at every second.
_OF_GUIDANCE, _OF_BLOCKS = 0.4, 1.2
# What is seen of a predicted difference in log error: 12, 25 and 50 planned steps of that model
# were to err 1.1, 1.4 and 1.3 less than uniform ones, and erred .7, .6 and .4 less (45 prompts).
_SEEN = 0.5


@dataclass(frozen=True)
class RecipeCandidate:
    """A way to sample that is predicted to be as fast as wanted.

    steps: where its timesteps come from. predicted: mean squared error of its steps alone.
    """

    variant: Variant
    steps: str
    move: Move
    predicted: float
    speedup: float

    @property
    def expected(self) -> float:
        """Its log error as far as can be told before sampling, up to a constant."""
        move = _OF_GUIDANCE * (self.move.guidance > 1) + _OF_BLOCKS * (self.move.blocks > 1.0)
        return _SEEN * float(log_error(self.predicted)) + move

    def __str__(self) -> str:
        schedule = self.variant.schedule
        weights = set(schedule.corrections[1:-1])
        corrected = ", corrected" if weights else ""
        if len(weights) == 1:
            corrected += f" by {min(weights):g}"
        return f"{len(schedule)} steps ({self.steps}{corrected}), {self.move}"


@dataclass(frozen=True)
class RecipeSearch:
    """One search."""

    options: OptimizeOptions
    context: WorkerContext
    source: Source[OptimizeOptions]
    maker: Maker
    trials: Trials
    times: BlockTimes
    schedules: CorrectedSchedules
    race_requests: tuple[Request, ...]
    fresh_requests: tuple[Request, ...]
    _errors: dict[TimestepSchedule, ReuseErrors] = field(default_factory=dict)

    @property
    def say(self) -> Callable[[str], None]:
        """Tell the user a line (rank 0)."""
        return self.context.progress.say

    @property
    def reference(self) -> TimestepSchedule:
        """The full-length schedule, of the calibration."""
        return self.source.reference

    @property
    def race_budget(self) -> float:
        """Generations left to choose with, once timing and the proof are paid."""
        return race_budget(self.options, self.maker.kind, len(self.reference))

    def candidates(self, speedup: float) -> list[RecipeCandidate]:
        """Those predicted to be `speedup` times as fast, in the order in which to try them.

        What needs no search is among the first, so that nothing worse is written: uniform
        corrected steps, and searched steps without corrections. Of the others a move's
        best-predicted schedule comes first, its other one a few places later: the prediction is not
        so sure that only one of them should race. Raises OptionError where none is fast enough,
        naming the largest speed-up there is.
        """
        groups: list[tuple[float, list[RecipeCandidate]]] = []
        for move in self._moves():
            length = self._longest(move, speedup)
            same = [] if length is None else self._of_length(length, move)
            if same:
                groups.append((same[0].expected, same))
        groups.sort(key=lambda group: group[0])
        simple = self._simple(speedup)
        found = [
            (rank + _LATER * place, candidate)
            for rank, (_, same) in enumerate(groups)
            for place, candidate in enumerate(same)
            if candidate not in simple
        ]
        if not found:
            raise OptionError(
                f"--speedup {speedup:g}: no recipe is that fast here; the largest possible is "
                f"{math.floor(10 * self.largest()) / 10:g}"
            )
        ranked = [candidate for _, candidate in sorted(found, key=lambda one: one[0])]
        return [*ranked[:1], *simple, *ranked[1:]]

    def shortened(self, candidate: RecipeCandidate, speedup: float) -> RecipeCandidate | None:
        """The same move with fewer steps, as many as are predicted to be `speedup` as fast; None
        where there is no such recipe.
        """
        length = min(
            self._longest(candidate.move, speedup) or 0, len(candidate.variant.schedule) - 1
        )
        if length < FEWEST_STEPS:
            return None
        same = self._of_length(length, candidate.move)
        alike = [each for each in same if each.steps == candidate.steps]
        return next(iter([*alike, *same]), None)

    def finer(self, speedup: float, enough: float = RANKING) -> Variant:
        """What stands for the converged video beside recipes of `speedup`: corrected steps,
        `enough` times theirs. What is told of a winner needs more than what ranks recipes.
        """
        full = len(self.reference)
        steps = round(full * finer_share(self.maker.kind, speedup, enough))
        return Variant(self.schedules.uniform(min(steps, self.maker.kind.most)).schedule)

    def plain(self, speedup: float) -> Variant:
        """What anybody would do: as few even steps as it takes, nothing corrected or reused."""
        length = max(FEWEST_STEPS, math.floor(len(self.reference) / speedup))
        return Variant(self.maker.even(length))

    def largest(self) -> float:
        """The largest predicted speed-up of any recipe."""
        return max(
            each.speedup for move in self._moves() for each in self._of_length(FEWEST_STEPS, move)
        )

    def race(self, candidates: Sequence[RecipeCandidate], budget: float) -> RaceResult:
        """Sample the candidates against each other, on prompts that judge nothing later; the
        nearest to the converged video wins. A few videos decide only against what was expected
        anyway: of two equals the better one in 3 prompts is a toss.
        """
        finer = self.finer(min(candidate.speedup for candidate in candidates))
        costs = [1.0 / candidate.speedup for candidate in candidates]
        costs = costs[: max(3, affordable(costs, budget))]
        variants = [candidate.variant for candidate in candidates]
        expected = np.array([candidate.expected for candidate in candidates[: len(costs)]])
        best = int(expected.argmin())
        return race(
            costs,
            len(self.race_requests),
            budget,
            racing(self.trials, variants, self.race_requests, finer),
            baseline_cost=self.trials.cost(finer),
            pinned=best if len(costs) > 1 else None,
            prior=(expected - expected[best]).tolist(),
        )

    def _moves(self) -> list[Move]:
        """What can be reused here: guidance only where there is some, and on one rank."""
        reuses = reuses_guidance(self.maker, self.context.parallel)
        return [move for move in MOVES if reuses or move.guidance == 1]

    def _longest(self, move: Move, speedup: float) -> int | None:
        """The most steps with which `move` is predicted to be fast enough.

        Reused blocks make a plan as much faster as the move says, so none has to be made here.
        """
        full = len(self.reference)
        for length in range(min(full, math.floor(2 * full * move.blocks / speedup)), 0, -1):
            schedule = self.maker.even(length)
            policy = guidance_alone(move, len(self.maker.call_timesteps(schedule)))
            if length < FEWEST_STEPS or policy is None:
                return None
            if self._speedup(schedule, policy) * move.blocks >= speedup * (1.0 - _SAME):
                return length
        return None

    def _simple(self, speedup: float) -> list[RecipeCandidate]:
        """What is to be had without any planning: fewer steps, uniform and corrected, or searched
        as `search-steps` does.
        """
        length = self._longest(Move(), speedup)
        if length is None:
            return []
        uniform = self.schedules.uniform(length)
        rated = [(uniform, self.schedules.predicted(uniform)), self.schedules.plain(length)]
        return self._reusing(Move(), [each for each in rated if each is not None])

    def _of_length(self, length: int, move: Move) -> list[RecipeCandidate]:
        return self._reusing(move, self.schedules.of_length(length))

    def _reusing(
        self, move: Move, rated: Sequence[tuple[StepCandidate, float]]
    ) -> list[RecipeCandidate]:
        """What `move` makes of schedules, where it can be made of them."""
        found = []
        for candidate, predicted in rated:
            policy = self._policy(candidate.schedule, move)
            if policy is not None:
                reuses = any(policy.plan) or policy.guidance is not None
                variant = Variant(candidate.schedule, policy if reuses else None)
                speedup = self._speedup(candidate.schedule, policy)
                found.append(RecipeCandidate(variant, candidate.origin, move, predicted, speedup))
        return found

    def _policy(self, schedule: TimestepSchedule, move: Move) -> CachePolicy | None:
        timesteps = self.maker.call_timesteps(schedule)
        if schedule not in self._errors:
            lags = min(LAGS, len(timesteps) - 1)
            self._errors[schedule] = ReuseErrors.of(self.source.calibration, timesteps, lags)
        ancestral = self.maker.kind.ancestral
        importance = gaussian_importance(self.source.calibration, timesteps, ancestral=ancestral)
        return plan_reuse(move, self._errors[schedule], importance, self.times)

    def _speedup(self, schedule: TimestepSchedule, policy: CachePolicy) -> float:
        full = len(self.maker.call_timesteps(self.reference)) * self.times.step
        return full / self.times.seconds(policy, len(self.maker.call_timesteps(schedule)))


def finer_share(kind: SamplerKind, speedup: float, enough: float) -> float:
    """Steps that stand for convergence, over the original's."""
    if not kind.takes_corrections:
        return MOST
    return min(max(1.0, enough / speedup), MOST_ANCESTRAL if kind.ancestral else MOST)


def proof_cost(options: OptimizeOptions, kind: SamplerKind, steps: int) -> float:
    """Generations that the proof on fresh prompts takes, about, where the original has so many
    steps: the original, finer steps, the recipe and plain steps of each, and timing.
    """
    speedup = options.speedup if options.max_loss is None else 2.0
    timed = min(TIMED_VIDEOS, options.verify_prompts) * _timing(speedup, steps)
    finer = finer_share(kind, speedup, PROVING)
    return options.verify_prompts * (1.0 + finer + 2.0 / speedup) + timed


def race_budget(options: OptimizeOptions, kind: SamplerKind, steps: int) -> float:
    """What is left to choose with: the proof is paid, and the times of steps, of the winner, and
    of what replaces it where it falls short.
    """
    speedup = options.speedup if options.max_loss is None else 2.0
    timing = (BLOCK_STEPS + ALONE_STEPS) / steps + 2 * TIMED_RACED * _timing(speedup, steps)
    return max(LEAST_RACE, options.budget - proof_cost(options, kind, steps) - timing)


def _timing(speedup: float, steps: int) -> float:
    return 1.0 / speedup + 2 * TIMED_STEPS / steps


def open_search(source: Source[OptimizeOptions]) -> RecipeSearch:
    """The statistics and the model, and the times of its steps."""
    options, context = source.options, source.context
    maker = source.maker()

    # The videos that choose, and those that judge; what they will cost.
    fresh = options.verify_prompts
    found = deciding_requests(options, source.calibration, race=RACE_VIDEOS, fresh=fresh)
    if found.note:
        context.progress.say(found.note)
    steps = len(source.reference)
    proof = proof_cost(options, maker.kind, steps)
    choosing = max(options.budget - proof, race_budget(options, maker.kind, steps))
    say_cost(context, source, choosing, proof)
    maker.prefetch_prompts([request.prompt for request in (*found.race, *found.fresh)])

    # What steps, blocks and branches cost here.
    trials = Trials(maker, Variant(source.reference), context, options)
    guidance = reuses_guidance(maker, context.parallel)
    schedule, request = source.reference, found.race[0]
    times = times_here(trials, "step times", maker, schedule, request, guidance=guidance)
    schedules = CorrectedSchedules(source.calibration, source.kind, source.even)
    return RecipeSearch(
        options,
        context,
        source,
        maker,
        trials,
        times,
        schedules,
        found.race,
        found.fresh,
    )
