"""One length of a step search: candidates from the table, a race, verification."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from osp_opt.calibration.source import Source
from osp_opt.options import SearchStepsOptions
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import Interval, mean_ci
from osp_opt.quality.loss import Loss
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.race import affordable_prompts, race
from osp_opt.search.steps.candidates import StepCandidate, StepTable, objectives_for
from osp_opt.search.steps.objectives import StepObjective
from osp_opt.search.steps.paths import descend_on_paths
from osp_opt.search.steps.sensitivity import fit_sensitivity
from osp_opt.search.steps.verify import Verification, verify
from osp_opt.search.trials import Trials, Variant, racing
from osp_opt.system.context import WorkerContext

__all__ = ["Decision", "Search", "as_factor", "decide_and_verify"]

FIRST_ROUND = 0.35  # of the race's budget: the rest compares the best few on more prompts
MIN_TO_FIT = 4  # schedules: fewer errors cannot tell the model's two parameters


@dataclass(frozen=True)
class Decision:
    """A schedule for one length: the best candidate, why, and what is known of it."""

    candidate: StepCandidate
    uniform: StepCandidate
    better: bool  # than uniform: on fresh prompts where it was verified, else by what chose it
    reason: str
    predicted: Interval
    race: list[dict[str, Any]] = field(default_factory=list)
    log_ratios: tuple[float, ...] = ()  # of the race's errors, candidate over uniform, per prompt
    verification: Verification | None = None
    written: StepCandidate | None = None  # in place of a candidate that was not better

    @property
    def chosen(self) -> StepCandidate:
        """What goes into the file."""
        return self.written or self.candidate

    @property
    def schedule(self) -> TimestepSchedule:
        """The steps of what goes into the file."""
        return self.chosen.schedule

    @property
    def loss(self) -> Loss | None:
        """The verified loss of quality of what goes into the file."""
        found = self.verification
        if found is None:
            return None
        return (found.uniform if self.chosen == self.uniform else found.searched).loss


@dataclass(frozen=True)
class Search:
    """What every length's search needs."""

    options: SearchStepsOptions
    context: WorkerContext
    source: Source[SearchStepsOptions]
    table: StepTable
    trials: Trials | None
    race_requests: list[Request]
    fresh_requests: list[Request]

    @property
    def reference(self) -> TimestepSchedule:
        """The full-length schedule, of the calibration."""
        return self.source.reference

    def objectives(self, length: int) -> tuple[StepObjective, ...]:
        """The costs worth trying for so many steps, the most trusted first."""
        found = objectives_for(self.source.kind, self.options.objective)
        return self.table.by_trust(found, length) if length < len(self.reference) else found


def as_factor(log_ratio: Interval) -> str:
    """A log ratio as a factor, with its interval where there is one."""
    return log_ratio.exp().text(digits=2)


def decide_and_verify(search: Search, length: int) -> Decision:
    """The schedule of `length` steps to write: uniform where nothing is better."""
    say = search.context.progress.say
    decision = _decide(search, length)
    say(f"{length} steps: {decision.chosen.origin}; {decision.reason}")
    if search.trials is not None and search.options.verifies:
        decision = _verified(search, search.trials, decision)
    elif decision.race:
        say(f"{length} steps: not verified; what chose it cannot show that it is better (--verify)")
    if decision.better or decision.candidate == decision.uniform:
        return decision
    own = f"{decision.uniform.origin} steps"
    if search.options.force:
        say(f"{length} steps: written although it is not better than {own} (--force)")
        return decision
    say(f"{length} steps: not better than {own}; these are written")
    return replace(decision, written=decision.uniform)


def _decide(search: Search, length: int) -> Decision:
    """The best schedule of `length` steps: searched, predicted, and raced where allowed."""
    options, table = search.options, search.table
    uniform = table.uniform(length)
    if length >= len(search.reference):
        none = Interval(0.0, 0.0, 0.0, len(search.source.calibration.prompts))
        reason = f"the original has {len(search.reference)} steps, nothing to save"
        return Decision(uniform, uniform, True, reason, none)
    trials = None if options.objective == "distribution" else search.trials
    objectives = search.objectives(length)
    if options.method == "ays":
        found, evaluations = descend_on_paths(options, search.source, length, search.context)
        candidates = [uniform, StepCandidate(found, "ays")]
        search.context.progress.detail(f"{length} steps: {evaluations} network evaluations")
    else:
        limit = 2 if trials is None else _room(search, length)
        tried = objectives[:1] if trials is None else objectives
        candidates = table.shortlist(length, tried, limit)
    if trials is None:
        return _decide_by_table(table, candidates, objectives[0])
    return _decide_by_race(search, trials, candidates)


def _decide_by_table(
    table: StepTable, candidates: list[StepCandidate], objective: StepObjective
) -> Decision:
    uniform, best = candidates[0], candidates[min(1, len(candidates) - 1)]
    gain = table.advantage(best.schedule, uniform.schedule, objective)
    reason = (
        f"estimated error {as_factor(gain)} times that of {uniform.origin} steps, by "
        f"{objective.label}"
    )
    if gain.count == 1:
        reason += ", from one calibration video, which has no interval: calibrate more"
    return Decision(best, uniform, gain.high < 0, reason, gain)


def _room(search: Search, length: int) -> int:
    """Candidates that the first round of the race has room for; at least uniform and one more."""
    share = length / len(search.reference)
    budget = FIRST_ROUND * search.options.budget
    return max(2, math.floor((budget - 1.0) / share))


def _with_fitted(
    search: Search, trials: Trials, candidates: list[StepCandidate]
) -> tuple[list[StepCandidate], list[float] | None]:
    """`candidates` and the best one by what their errors on the first prompt say of the model.

    With what that predicts for each: the log of its error over uniform's.
    """
    if len(candidates) < MIN_TO_FIT:
        return candidates, None
    schedules = [candidate.schedule for candidate in candidates]
    variants = [Variant(schedule) for schedule in schedules]
    errors = trials.errors(variants, [search.race_requests[0]] * len(variants))
    name = objectives_for(search.source.kind, "video")[0].name
    objective = fit_sensitivity(search.table, schedules, errors, name)
    fitted = search.table.best(objective, len(schedules[0]))
    if not search.table.has_twin(fitted, candidates):
        candidates = [*candidates, fitted]
    predicted = np.log(search.table.mean_costs([c.schedule for c in candidates], objective))
    search.context.progress.detail(
        f"{len(schedules[0])} steps: the candidates' errors fit {objective.heaviest().label} best"
    )
    return candidates, [float(value - predicted[0]) for value in predicted]


def _decide_by_race(search: Search, trials: Trials, candidates: list[StepCandidate]) -> Decision:
    """Candidate 0 is uniform. Another one is taken where the race's prompts alone say at 95 % that
    it is better: the prediction only guides which candidates go on.
    """
    requests, budget = search.race_requests, search.options.budget
    prior = None
    if search.options.method == "dp":
        candidates, prior = _with_fitted(search, trials, candidates)
    costs = [len(c.schedule) / len(search.reference) for c in candidates]
    foreseen = min(affordable_prompts(costs, 1.0, budget), len(requests))
    search.context.progress.detail(
        f"{len(candidates[0].schedule)} steps: {len(candidates)} candidates race on about "
        f"{foreseen} prompts"
    )
    trials.references(trials.original, requests[:foreseen])  # together: ranks share them
    measure = racing(trials, [Variant(c.schedule) for c in candidates], requests)
    result = race(costs, len(requests), budget, measure, baseline_cost=1.0, pinned=0, prior=prior)
    winner = candidates[result.winner]
    challenger = result.winner or next((c for c in result.ranking if c != 0), 0)
    gain = result.against(challenger, 0)
    trusted = search.objectives(len(winner.schedule))[0]
    predicted = search.table.advantage(winner.schedule, candidates[0].schedule, trusted)
    reason = (
        f"error against {len(search.reference)} steps {as_factor(gain)} times that of "
        f"{candidates[0].origin} steps, "
        f"on the {gain.count} prompts that chose it"
    )
    if result.winner == 0:
        reason = f"no candidate was better (the best had {reason})"
    raced = [
        {
            "origin": candidate.origin,
            "timesteps": list(candidate.schedule.timesteps),
            "errors": {requests[p].prompt: e for p, e in result.errors[c].items()},
        }
        for c, candidate in enumerate(candidates)
    ]
    return Decision(
        winner,
        candidates[0],
        result.winner == 0 or gain.high < 0,
        reason,
        predicted,
        raced,
        tuple(result.log_ratios(result.winner, 0)),
    )


def _verified(search: Search, trials: Trials, decision: Decision) -> Decision:
    """Only the fresh prompts can show it: prediction and race chose the candidate."""
    candidate, uniform = decision.candidate.schedule, decision.uniform.schedule
    others = {}
    if search.options.method == "ays":  # side by side with what the table finds for nothing
        trusted = search.objectives(len(candidate))[0]
        others["dp"] = search.table.best(trusted, len(candidate)).schedule
    own = decision.uniform.origin
    found = verify(trials, candidate, uniform, search.fresh_requests, others, own)
    say = search.context.progress.detail
    for line in found.lines():
        say(line)
    yardstick = search.source.yardstick
    if yardstick is not None:
        say(yardstick.line(found.searched.psnr))
    decision = replace(decision, verification=found)
    if candidate == uniform:
        return decision
    gain = mean_ci(found.log_ratios)
    say(f"  error {as_factor(gain)} times that of {own} steps on {gain.count} fresh prompts")
    if search.options.objective == "distribution":  # chosen for something else than this error
        return decision
    return replace(decision, better=gain.high < 0)
