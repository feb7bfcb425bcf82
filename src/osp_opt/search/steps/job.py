"""`osp-opt search-steps`: find the timesteps that make the same video in fewer steps.

The table of the calibration shortlists, a race on sampled videos decides, fresh prompts verify.
A schedule that was not shown to be better than uniform is not written without --force.
"""

from __future__ import annotations

from osp_opt.base.errors import OptionError
from osp_opt.calibration.deciding import deciding_requests
from osp_opt.calibration.source import Source, open_source
from osp_opt.generate.memory import report_memory
from osp_opt.options import SearchStepsOptions
from osp_opt.quality.loss import EXIT_CODES
from osp_opt.search.cost import say_cost
from osp_opt.search.evidence import TIMED_VIDEOS, evidence_of
from osp_opt.search.steps.candidates import StepTable
from osp_opt.search.steps.curve import write_curve
from osp_opt.search.steps.decide import Decision, Search, decide_and_verify
from osp_opt.search.steps.report import print_table, write_schedules
from osp_opt.search.trials import TIMED_STEPS, Trials, Variant
from osp_opt.system.context import WorkerContext

__all__ = ["run"]

RACE_VIDEOS = 16  # more than any budget lets a race use, where prompts have to be used twice
LADDER = (4, 6, 8, 10, 12, 16, 20, 25, 33, 40, 50, 67, 80)  # lengths tried for --max-loss
LOSS_VIDEOS = 4  # of the race, on which a length's loss is looked at before it is taken


def run(options: SearchStepsOptions, context: WorkerContext) -> int:
    """Search every length asked for; write schedules, sidecars, the table and the curve.

    Returns 0, or how a loss was exceeded.
    """
    search = open_search(open_source(options, context))
    print_table(search)
    code = 0
    if options.max_loss is not None and search.trials is not None:
        length, decision = fewest_within(search, search.trials, options.max_loss)
        decisions = {length: decision}
        if decision.loss is not None:
            code = EXIT_CODES[decision.loss.verdict(options.max_loss)]
    else:
        decisions = {length: decide_and_verify(search, length) for length in _lengths(search)}
    report_memory(None if search.trials is None else search.source.maker(), context)
    if context.parallel.is_main:
        write_curve(search, decisions)
        write_schedules(search, decisions)
    return code


def open_search(source: Source[SearchStepsOptions]) -> Search:
    """The table of the calibration, and the videos and the model where videos are sampled."""
    options, context = source.options, source.context
    table = StepTable(source.calibration, source.kind, own=source.even)
    if options.verify is False or options.all_steps:
        return Search(options, context, source, table, None, [], [])
    maker = source.maker()
    trials = Trials(maker, Variant(source.reference), context)
    fresh = options.verify_prompts if options.verifies else 0
    found = deciding_requests(options, source.calibration, race=RACE_VIDEOS, fresh=fresh)
    if found.note:
        context.progress.say(found.note)
    lengths = (max(LADDER),) if options.max_loss is not None else options.steps
    shares = sum(min(1.0, length / len(source.reference)) for length in lengths)
    some = 2.0 * TIMED_STEPS / len(source.reference)  # of the original, for each that is timed
    timed = min(TIMED_VIDEOS, fresh) * (len(lengths) * some + shares)
    judging = fresh * (1.0 + 2.0 * shares) + timed  # the original, uniform and searched steps
    say_cost(context, source, options.budget * len(lengths), judging)
    prompts = [request.prompt for request in (*found.race, *found.fresh)]
    maker.prefetch_prompts([*prompts, *source.calibration.prompts])
    return Search(options, context, source, table, trials, [*found.race], [*found.fresh])


def _lengths(search: Search) -> list[int]:
    if search.options.all_steps:
        return list(range(2, len(search.reference)))
    return list(dict.fromkeys(search.options.steps))


def fewest_within(search: Search, trials: Trials, max_loss: float) -> tuple[int, Decision]:
    """The smallest number of steps that is shown to lose at most `max_loss`.

    Videos of the race choose a length; fresh ones judge it, and, where they do not show that its
    loss is kept, the next longer one, each wrongly "kept" one time in forty. Raises OptionError
    when more is lost even so.
    """
    say = search.context.progress.say
    ladder = [n for n in LADDER if n < len(search.reference)]
    first = _first_promising(search, trials, ladder, max_loss)
    for length in ladder[first : first + 2]:
        decision = decide_and_verify(search, length)
        assert decision.loss is not None
        verdict = decision.loss.verdict(max_loss)
        say(f"{length} steps: {verdict} within {max_loss:.2%}; {decision.loss.line()}")
        if verdict == "kept" or (search.options.force and verdict == "undecided"):
            break
    if verdict == "lost" and not search.options.force:
        raise OptionError(
            f"--max-loss {max_loss:.2%}: {length} steps lose more; allow more loss, or use "
            "search-cache --max-loss"
        )
    return length, decision


def _first_promising(search: Search, trials: Trials, ladder: list[int], max_loss: float) -> int:
    """Index of the first length of `ladder` whose loss seems to be within, the last if none is."""
    low, high = 0, len(ladder) - 1
    videos = search.race_requests[:LOSS_VIDEOS]
    while low < high:
        middle = (low + high) // 2
        length = ladder[middle]
        candidate = Variant(search.table.best(search.objectives(length)[0], length).schedule)
        uniform = Variant(search.table.uniform(length).schedule)
        found = [evidence_of(rows).loss for rows in trials.compared([candidate, uniform], videos)]
        least = min(found, key=lambda loss: loss.share.estimate)
        search.context.progress.say(f"{length} steps: {least.line()}, on videos that choose")
        within = least.share.estimate <= max_loss
        low, high = (low, middle) if within else (middle + 1, high)
    return low
