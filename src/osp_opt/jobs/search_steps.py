"""`osp-opt search-steps`: find the timesteps that make the same video in fewer steps.

The table of the calibration shortlists, a race on sampled videos decides, fresh prompts verify.
A schedule that was not shown to be better than uniform is not written without --force.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from osp_opt.artifacts import write_json, write_meta
from osp_opt.errors import OptionError
from osp_opt.jobs.generation import Request, VideoMaker
from osp_opt.jobs.memory import report_memory
from osp_opt.jobs.prompt_sets import default_prompts
from osp_opt.jobs.step_sources import Source, open_source
from osp_opt.jobs.step_trials import StepTrials
from osp_opt.jobs.step_verify import Verification, verify
from osp_opt.options import SearchStepsOptions
from osp_opt.prompts import given_prompts
from osp_opt.quality.intervals import Interval, mean_ci
from osp_opt.sampling.samplers import custom_timestep_samplers
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.step_candidates import StepCandidate, StepTable, objectives_for
from osp_opt.search.step_race import affordable_prompts, pooled_gain, race_schedules
from osp_opt.search.step_sensitivity import fit_sensitivity
from osp_opt.worker import WorkerContext

__all__ = ["run"]

TABLE_STEPS = (10, 20, 25, 33, 50)  # lengths of the printed table
FIRST_ROUND = 0.35  # of the budget: the rest is for comparing the best few on more prompts
SURE = 0.8  # two-sided level of the estimates that guide the search; what counts is 95 %
MIN_TO_FIT = 4  # schedules: fewer errors cannot tell the model's two parameters
LADDER = (4, 6, 8, 10, 12, 16, 20, 25, 33, 40, 50, 67, 80)  # lengths tried for --max-loss


@dataclass(frozen=True)
class Decision:
    """A schedule for one length: the best candidate, why, and what is known of it."""

    candidate: StepCandidate
    uniform: StepCandidate
    shown: bool  # better than uniform, as far as was asked to be shown
    reason: str
    predicted: Interval
    race: list[dict[str, Any]] = field(default_factory=list)
    log_ratios: tuple[float, ...] = ()  # of measured errors, candidate over uniform, per prompt
    expected: float | None = None  # what the measured sensitivity predicts for them
    verification: Verification | None = None
    written: StepCandidate | None = None  # in place of a candidate that was not shown to be better

    @property
    def chosen(self) -> StepCandidate:
        """What goes into the file."""
        return self.written or self.candidate


@dataclass(frozen=True)
class Search:
    """What every length's search needs."""

    options: SearchStepsOptions
    context: WorkerContext
    source: Source
    table: StepTable
    trials: StepTrials | None
    race_requests: list[Request]
    fresh_requests: list[Request]

    @property
    def reference(self) -> TimestepSchedule:
        """The full-length schedule, of the calibration."""
        return self.source.reference


def run(options: SearchStepsOptions, context: WorkerContext) -> None:
    """Search every length asked for; write schedules, sidecars and the table."""
    if options.sampler not in custom_timestep_samplers():
        raise OptionError(
            f"--sampler {options.sampler}: cannot follow a schedule; use one of "
            f"{', '.join(custom_timestep_samplers())}"
        )
    search = _open(options, context)
    say = context.progress.say
    _print_table(search)
    lengths = _lengths(search)
    if options.max_loss is not None:
        lengths = [_smallest(search, options.max_loss)]
    decisions: dict[int, Decision] = {}
    for length in lengths:
        decision = _decide(search, length)
        say(f"{length} steps: {decision.chosen.origin}; {decision.reason}")
        if search.trials is not None and _verifies(options):
            decision = _verified(search, decision)
        decisions[length] = decision
        if not decision.shown and decision.chosen.origin != "uniform":
            if options.force:
                say(f"{length} steps: written although not shown to be better (--force)")
            else:
                say(f"{length} steps: not shown to be better than uniform; uniform is written")
                decisions[length] = replace(decision, written=decision.uniform)
    if context.parallel.is_main:
        _write(search, decisions)
    report_memory(None if search.trials is None else search.source.maker(), context)


def _open(options: SearchStepsOptions, context: WorkerContext) -> Search:
    source = open_source(options, context)
    table = StepTable(source.calibration, options.sampler)
    trials = None
    race, fresh = list[Request](), list[Request]()
    if options.verify is not False and not options.all_steps:
        maker = source.maker()
        trials = StepTrials(maker, source.reference, context)
        race, fresh = _held_out(options, source, maker)
        maker.foresee([*(r.prompt for r in race + fresh), *source.calibration.prompts])
    return Search(options, context, source, table, trials, race, fresh)


def _held_out(
    options: SearchStepsOptions, source: Source, maker: VideoMaker
) -> tuple[list[Request], list[Request]]:
    """Prompts that decide, and others that verify; none that was calibrated on."""
    prompts = given_prompts(options) or default_prompts(options, "verification")
    used = set(source.calibration.prompts)
    unused = [prompt for prompt in dict.fromkeys(prompts) if prompt not in used]
    if not unused:
        raise OptionError(
            "every prompt given was calibrated on already; give other ones to decide with, "
            "or use --no-verify"
        )
    requests = [Request(prompt, options.seed) for prompt in unused]
    verifying = min(options.verify_prompts, len(requests) // 2) if _verifies(options) else 0
    if _verifies(options) and not verifying:
        return requests, requests  # one prompt has to do both
    split = len(requests) - verifying
    return requests[:split], requests[split:]


def _verifies(options: SearchStepsOptions) -> bool:
    """Whether the winner is verified on fresh prompts: by default, for the bundled model."""
    return options.model_path is None if options.verify is None else options.verify


def _lengths(search: Search) -> list[int]:
    if search.options.all_steps:
        return list(range(2, len(search.reference)))
    return list(dict.fromkeys(search.options.steps))


def _decide(search: Search, length: int) -> Decision:
    """The best schedule of `length` steps: searched, predicted, and raced where allowed."""
    options, table = search.options, search.table
    objectives = objectives_for(options.sampler, options.objective)
    uniform = table.uniform(length)
    if length >= len(search.reference):
        none = Interval(0.0, 0.0, 0.0, len(search.source.calibration.prompts))
        reason = f"the original has {len(search.reference)} steps, nothing to save"
        return Decision(uniform, uniform, True, reason, none)
    if options.method == "ays":
        found, evaluations = search.source.descend(length)
        candidates = [uniform, StepCandidate(found, "ays")]
        search.context.progress.say(f"{length} steps: {evaluations} network evaluations")
    else:
        by_table = search.trials is None or options.objective == "distribution"
        limit = 2 if by_table else _room(search, length)
        candidates = table.shortlist(length, objectives[: 1 if by_table else None], limit)
    if search.trials is None or options.objective == "distribution":
        return _decide_by_table(table, candidates, objectives[0])
    return _decide_by_race(search, candidates)


def _decide_by_table(table: StepTable, candidates: list[StepCandidate], objective: Any) -> Decision:
    uniform, best = candidates[0], candidates[min(1, len(candidates) - 1)]
    gain = table.advantage(best.schedule, uniform.schedule, objective)
    shown = gain.high < 0 or (gain.count == 1 and gain.estimate < 0)
    reason = f"estimated error {_factor(gain)} of uniform's by {objective.label}"
    return Decision(best, uniform, shown, reason, gain)


def _room(search: Search, length: int) -> int:
    """Candidates that the first round of the race has room for; at least uniform and one more."""
    share = length / len(search.reference)
    return max(2, math.floor((FIRST_ROUND * search.options.budget - 1.0) / share))


def _with_fitted(
    search: Search, candidates: list[StepCandidate]
) -> tuple[list[StepCandidate], list[float] | None]:
    """`candidates` and the best one by what their errors on the first prompt say of the model.

    With what that predicts for each: the log of its error over uniform's.
    """
    assert search.trials is not None
    if len(candidates) < MIN_TO_FIT:
        return candidates, None
    schedules = [candidate.schedule for candidate in candidates]
    errors = search.trials.errors(schedules, [search.race_requests[0]] * len(schedules))
    name = objectives_for(search.options.sampler, "video")[0].name
    objective = fit_sensitivity(search.table, schedules, errors, name)
    fitted = search.table.best(objective, len(schedules[0]))
    if not search.table.has_twin(fitted, candidates):
        candidates = [*candidates, fitted]
    predicted = np.log(search.table.mean_costs([c.schedule for c in candidates], objective))
    search.context.progress.say(
        f"{len(schedules[0])} steps: the candidates' errors fit {objective.heaviest().label} best"
    )
    return candidates, [float(value - predicted[0]) for value in predicted]


def _decide_by_race(search: Search, candidates: list[StepCandidate]) -> Decision:
    assert search.trials is not None
    trials, requests, budget = search.trials, search.race_requests, search.options.budget
    prior = None
    if search.options.method == "dp":
        candidates, prior = _with_fitted(search, candidates)
    costs = [len(c.schedule) / len(search.reference) for c in candidates]
    say = search.context.progress.say
    foreseen = min(affordable_prompts(costs, 1.0, budget), len(requests))
    say(
        f"{len(candidates[0].schedule)} steps: {len(candidates)} candidates race on about "
        f"{foreseen} prompts"
    )
    trials.baseline(requests[:foreseen])  # together: ranks share them

    def measure(pairs: list[tuple[int, int]]) -> list[float]:
        return trials.errors(
            [candidates[c].schedule for c, _ in pairs], [requests[p] for _, p in pairs]
        )

    result = race_schedules(costs, 1.0, len(requests), budget, measure, prior=prior)
    winner = candidates[result.winner]
    challenger = result.winner or next((c for c in result.ranking if c != 0), 0)
    expected = None if prior is None else prior[challenger]
    gain = pooled_gain(result.log_ratios(challenger, 0), expected, SURE)
    objective = objectives_for(search.options.sampler, search.options.objective)[0]
    predicted = search.table.advantage(winner.schedule, candidates[0].schedule, objective)
    shown = result.winner == 0 or gain.high < 0
    reason = (
        f"error against {len(search.reference)} steps {_factor(gain)} of uniform's, "
        f"from {gain.count} held-out prompts and the prediction"
    )
    if result.winner == 0:
        reason = f"no candidate was better (the best had {reason})"
    race = [
        {
            "origin": candidate.origin,
            "timesteps": list(candidate.schedule.timesteps),
            "errors": {requests[p].prompt: e for p, e in result.errors[c].items()},
        }
        for c, candidate in enumerate(candidates)
    ]
    log_ratios = tuple(result.log_ratios(result.winner, 0))
    return Decision(
        winner,
        candidates[0],
        shown,
        reason,
        predicted,
        race,
        log_ratios,
        None if prior is None else prior[result.winner],
    )


def _verified(search: Search, decision: Decision) -> Decision:
    """Only the fresh prompts can show it: prediction and race chose the candidate."""
    assert search.trials is not None
    chosen, uniform = decision.chosen.schedule, decision.uniform.schedule
    found = verify(search.trials, chosen, uniform, search.reference, search.fresh_requests)
    for line in found.lines():
        search.context.progress.say(line)
    if chosen == uniform:
        return replace(decision, verification=found)
    log_ratios = (*decision.log_ratios, *found.log_ratios)
    gain = pooled_gain(log_ratios, decision.expected, SURE)
    search.context.progress.say(
        f"  error {_factor(gain)} of uniform's, from all {gain.count} prompts and the prediction"
    )
    if search.options.objective == "distribution":  # chosen for something else than this error
        return replace(decision, verification=found, log_ratios=log_ratios)
    fresh = mean_ci(found.log_ratios)
    search.context.progress.say(f"  {_factor(fresh)} from the {fresh.count} fresh prompts alone")
    shown = fresh.high < 0
    return replace(decision, verification=found, shown=shown, log_ratios=log_ratios)


def _smallest(search: Search, max_loss: float) -> int:
    """The smallest number of steps whose verified loss of quality stays within `max_loss`.

    Bisection over a ladder of lengths (quality falls as steps are cut), each with the table's
    first choice. Raises OptionError without verification, or when no length is good enough.
    """
    if search.trials is None:
        raise OptionError("--max-loss: needs videos to be sampled; leave out --no-verify")
    ladder = [n for n in LADDER if n < len(search.reference)]
    objective = objectives_for(search.options.sampler, search.options.objective)[0]
    requests = search.fresh_requests or search.race_requests
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high) // 2
        length = ladder[middle]
        candidate = search.table.best(objective, length).schedule
        uniform = search.table.uniform(length).schedule
        found = verify(search.trials, candidate, uniform, search.reference, requests)
        loss = found.loss
        search.context.progress.say(f"{length} steps: loss {loss.estimate:.2%} ({found.measure})")
        low, high = (low, middle) if loss.estimate <= max_loss else (middle + 1, high)
    if low == len(ladder):
        raise OptionError(
            f"--max-loss {max_loss:.2%}: {ladder[-1]} steps lose more than that; allow more loss"
        )
    return ladder[low]


def _print_table(search: Search) -> None:
    """Predicted error against uniform, for a few lengths."""
    say = search.context.progress.say
    objective = objectives_for(search.options.sampler, search.options.objective)[0]
    asked = () if search.options.all_steps else search.options.steps
    say(f"predicted error, searched / uniform ({objective.label}):")
    for length in sorted({*TABLE_STEPS, *asked}):
        if 2 < length < len(search.reference):
            say(f"  {length:4d} steps: {_factor(_prediction(search, length, objective))}")


def _prediction(search: Search, length: int, objective: Any) -> Interval:
    table = search.table
    best = table.best(objective, length)
    return table.advantage(best.schedule, table.uniform(length).schedule, objective)


def _factor(log_ratio: Interval) -> str:
    low, high = (math.exp(min(x, 50.0)) for x in (log_ratio.low, log_ratio.high))
    interval = f" [{low:.2f}, {high:.2f}]" if math.isfinite(log_ratio.low) else ""
    return f"{math.exp(log_ratio.estimate):.2f}{interval}"


def _write(search: Search, decisions: dict[int, Decision]) -> None:
    """The schedules with their sidecars, and the table of all of them."""
    say = search.context.progress.say
    rows = []
    for number, (length, decision) in enumerate(decisions.items()):
        path = search.options.schedule_path
        if len(decisions) > 1:
            path = path.with_name(f"{path.stem}-{length}{path.suffix}")
        report = _report(search, decision)
        schedule = decision.chosen.schedule
        targets = [path] if len(decisions) == 1 else [path, search.options.schedule_path]
        for target in targets[: 2 if number == 0 else 1]:
            schedule.save(target)
            write_meta(target, report)
        rows.append({"steps": length, "file": path.name, **report["search"]})
        say(f"schedule of {length} steps: {path}")
    write_json(search.context.run_dir / "table.json", rows)


def _interval(ratios: Sequence[float], level: float = 0.95) -> dict[str, Any] | None:
    return mean_ci(ratios, level).as_json() if ratios else None


def _report(search: Search, decision: Decision) -> dict[str, Any]:
    """The sidecar of one schedule."""
    calibration = search.source.calibration
    ratios = decision.log_ratios
    return {
        "setting": search.source.setting(decision.chosen.schedule),
        "search": {
            "method": search.options.method,
            "origin": decision.chosen.origin,
            # What the reasons, predictions and measurements below are about.
            "candidate": decision.candidate.origin,
            "shown_better_than_uniform": decision.shown and decision.chosen != decision.uniform,
            "reason": decision.reason,
            "log_predicted_error_over_uniform": decision.predicted.as_json(),
            "log_measured_error_over_uniform": _interval(ratios, SURE),
            "log_error_over_uniform": (
                pooled_gain(ratios, decision.expected, SURE).as_json() if ratios else None
            ),
            "log_fresh_error_over_uniform": _interval(
                () if decision.verification is None else decision.verification.log_ratios
            ),
            "log_ratios": list(ratios),
            "log_ratio_expected": decision.expected,
            "calibration": {
                "videos": len(calibration.prompts),
                "levels": len(calibration.timesteps),
            },
            "race": decision.race,
            "verification": (
                None if decision.verification is None else decision.verification.as_json()
            ),
        },
    }
