"""`osp-opt search-steps`: find the timesteps that make the same video in fewer steps.

The table of the calibration shortlists, a race on sampled videos decides, fresh prompts verify.
A schedule that was not shown to be better than uniform is not written without --force.
"""

from __future__ import annotations

from osp_opt.base.errors import OptionError
from osp_opt.calibration.deciding import deciding_requests
from osp_opt.calibration.source import open_source
from osp_opt.generate.memory import report_memory
from osp_opt.options import SearchStepsOptions
from osp_opt.sampling.samplers import custom_timestep_samplers
from osp_opt.search.steps.candidates import StepTable
from osp_opt.search.steps.curve import write_curve
from osp_opt.search.steps.decide import Decision, Search, settle, verifies
from osp_opt.search.steps.report import print_table, write_schedules
from osp_opt.search.steps.trials import StepTrials
from osp_opt.search.steps.verify import verify
from osp_opt.system.context import WorkerContext

__all__ = ["run"]

RACE_VIDEOS = 16  # more than any budget lets a race use, where prompts have to be used twice
LADDER = (4, 6, 8, 10, 12, 16, 20, 25, 33, 40, 50, 67, 80)  # lengths tried for --max-loss


def run(options: SearchStepsOptions, context: WorkerContext) -> None:
    """Search every length asked for; write schedules, sidecars, the table and the curve."""
    if options.sampler not in custom_timestep_samplers():
        raise OptionError(
            f"--sampler {options.sampler}: cannot follow a schedule; use one of "
            f"{', '.join(custom_timestep_samplers())}"
        )
    search = _open(options, context)
    print_table(search)
    if options.max_loss is not None:
        decisions = _fewest_within(search, options.max_loss)
    else:
        decisions = {length: settle(search, length) for length in _lengths(search)}
    if context.parallel.is_main:
        write_schedules(search, decisions)
        write_curve(search, decisions)
    report_memory(None if search.trials is None else search.source.maker(), context)


def _open(options: SearchStepsOptions, context: WorkerContext) -> Search:
    source = open_source(options, context)
    options = source.options
    table = StepTable(source.calibration, options.sampler)
    if options.verify is False or options.all_steps:
        return Search(options, context, source, table, None, [], [])
    maker = source.maker()
    trials = StepTrials(maker, source.reference, context)
    fresh = options.verify_prompts if verifies(options) else 0
    found = deciding_requests(options, source.calibration, race=RACE_VIDEOS, fresh=fresh)
    if found.note:
        context.progress.say(found.note)
    prompts = [request.prompt for request in (*found.race, *found.fresh)]
    maker.prefetch_prompts([*prompts, *source.calibration.prompts])
    return Search(options, context, source, table, trials, [*found.race], [*found.fresh])


def _lengths(search: Search) -> list[int]:
    if search.options.all_steps:
        return list(range(2, len(search.reference)))
    return list(dict.fromkeys(search.options.steps))


def _fewest_within(search: Search, max_loss: float) -> dict[int, Decision]:
    """The smallest number of steps whose loss on fresh prompts is shown to stay within `max_loss`.

    Bisection over a ladder of lengths with the table's first choice tells where to begin; what
    counts is the loss of the schedule that is written, so longer ones follow until it is within.
    Raises OptionError without verification, or when no length is good enough.
    """
    if search.trials is None:
        raise OptionError("--max-loss: needs videos to be sampled; leave out --no-verify")
    say = search.context.progress.say
    ladder = [n for n in LADDER if n < len(search.reference)]
    for length in ladder[_first_promising(search, search.trials, ladder, max_loss) :]:
        decision = settle(search, length)
        if decision.loss is not None and decision.loss.verdict(max_loss) == "kept":
            say(f"{length} steps: kept within {max_loss:.2%}; {decision.loss.line()}")
            return {length: decision}
    raise OptionError(
        f"--max-loss {max_loss:.2%}: {ladder[-1]} steps are not shown to keep that; allow "
        "more loss, or use more --verify-prompts"
    )


def _first_promising(search: Search, trials: StepTrials, ladder: list[int], max_loss: float) -> int:
    """Index of the first length of `ladder` at which searched or uniform steps may be within."""
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high) // 2
        length = ladder[middle]
        candidate = search.table.best(search.objectives[0], length).schedule
        uniform = search.table.uniform(length).schedule
        found = verify(trials, candidate, uniform, search.reference, search.fresh_requests)
        loss = min(found.loss.share.estimate, found.loss_uniform.share.estimate)
        search.context.progress.say(f"{length} steps: {found.loss.line()}")
        low, high = (low, middle) if loss <= max_loss else (middle + 1, high)
    return low
