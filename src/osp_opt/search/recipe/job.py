"""`osp-opt optimize`: the recipe that is as fast as wanted and loses least.

Fewer steps, corrected steps, reused guidance and reused blocks all buy speed, at prices that no
statistics compare. So the statistics choose within each kind: of every combination that is
predicted to be fast enough, the best schedule and the best plan. One race on sampled videos decides
between the combinations. Other videos then prove the winner, beside what anybody would do: plain
even steps of the same speed.
"""

from __future__ import annotations

from osp_opt.base.errors import OptionError
from osp_opt.calibration.source import open_source
from osp_opt.generate.memory import report_memory
from osp_opt.options import OptimizeOptions
from osp_opt.quality.intervals import ratio_ci
from osp_opt.quality.loss import EXIT_CODES
from osp_opt.search.evidence import evidence_of
from osp_opt.search.race import RaceResult
from osp_opt.search.recipe.proof import Found, prove
from osp_opt.search.recipe.report import write_recipe
from osp_opt.search.recipe.state import TIMED_RACED, RecipeCandidate, RecipeSearch, open_search
from osp_opt.system.context import WorkerContext

__all__ = ["run"]

TOLERANCE = 0.03  # a measured speed-up may fall short of the wanted one by so much
ATTEMPTS = 3  # recipes that are timed before the speed-up counts as not delivered
SPEEDS = (8.0, 6.0, 4.0, 3.0, 2.0, 1.5)  # tried for --max-loss, by halving
LOSS_VIDEOS = 3  # of the race, on which the loss of a recipe is looked at


def run(options: OptimizeOptions, context: WorkerContext) -> int:
    """Search, prove, and write the recipe; 0, or how --max-loss was exceeded."""
    search = open_search(open_source(options, context))
    if options.max_loss is not None:
        found = fastest_within(search, options.max_loss)
    else:
        found = deliver(search, options.speedup)
    if context.parallel.is_main:
        write_recipe(search, found)
    context.parallel.barrier()
    report_memory(search.maker, context)
    verdict = found.verdict(options.max_loss)
    return 0 if verdict is None else EXIT_CODES[verdict]


def deliver(search: RecipeSearch, speedup: float) -> Found:
    """The raced recipe whose measured speed-up is `speedup` (within the tolerance), proved."""
    candidates = search.candidates(speedup)
    raced = search.race(candidates, search.race_budget)
    chosen = candidates[raced.winner]
    search.say(f"raced {len(raced.errors)} recipes of {speedup:g}x; the best: {chosen}")
    chosen = fast_enough(search, chosen, speedup)
    return prove(search, chosen, ranked(candidates, raced))


def fast_enough(search: RecipeSearch, chosen: RecipeCandidate, speedup: float) -> RecipeCandidate:
    """`chosen`, or with fewer steps where it falls short by the clock, on videos of the race.

    Raises OptionError where it stays too slow.
    """
    timed = search.race_requests[:TIMED_RACED]
    tried, wanted, measured = chosen, speedup, 0.0
    for _ in range(ATTEMPTS):
        measured = ratio_ci(search.trials.speedups(tried.variant, timed)).estimate
        if measured >= speedup * (1.0 - TOLERANCE):
            return tried
        search.say(f"measured {measured:.2f}x where {tried.speedup:.2f}x was predicted")
        wanted *= speedup / measured
        shorter = search.shortened(tried, wanted)
        if shorter is None:
            break
        tried = shorter
    if search.options.force:
        return chosen
    raise OptionError(
        f"--speedup {speedup:g}: measured {measured:.2f}x; the machine may be busy: try again, or "
        "write it all the same with --force"
    )


def fastest_within(search: RecipeSearch, max_loss: float) -> Found:
    """The fastest recipe whose loss on the race's videos is within `max_loss`, proved on others.

    Speeds are halved: the fewest races that find the fastest. Where no speed is within, the
    mildest recipe is proved, so that the verdict is what fresh videos say.
    """
    speeds = [speed for speed in SPEEDS if speed <= search.largest()]
    if not speeds:
        raise OptionError(
            f"--max-loss {100 * max_loss:g}%: no recipe is {SPEEDS[-1]:g} times as fast here; "
            "the original has too few steps to save any"
        )
    low, high = 0, len(speeds)  # speeds[high:] are within, as far as is known
    tried: dict[int, tuple[RecipeCandidate, list[tuple[RecipeCandidate, list[float]]]]] = {}
    budget = search.race_budget / max(1, len(speeds).bit_length())
    while low < high:
        middle = (low + high) // 2
        candidates = search.candidates(speeds[middle])
        raced = search.race(candidates, budget)
        chosen = candidates[raced.winner]
        tried[middle] = chosen, ranked(candidates, raced)
        (rows,) = search.trials.compared([chosen.variant], search.race_requests[:LOSS_VIDEOS])
        loss = evidence_of(rows).loss
        search.say(f"{speeds[middle]:g}x by {chosen}: {loss.line()}")
        if loss.share.estimate <= max_loss:
            high = middle
        else:
            low = middle + 1
    mildest = high if high in tried else max(tried)
    return prove(search, *tried[mildest])


def ranked(
    candidates: list[RecipeCandidate], raced: RaceResult
) -> list[tuple[RecipeCandidate, list[float]]]:
    """Who raced, with the errors that were measured, one per prompt."""
    return [(candidates[c], list(errors.values())) for c, errors in raced.errors.items()]
