"""`osp-opt search-cache`: score policies from the calibration, race the best, deliver the ratio.

Nothing is sampled to prune. What is sampled uses prompts that the calibration did not see, some to
choose and others to judge (speed and error), so that the figures told are not those it was chosen
by.
"""

from __future__ import annotations

from dataclasses import replace

from osp_opt.base.errors import PolicyError
from osp_opt.calibration.source import open_source
from osp_opt.generate.memory import report_memory
from osp_opt.options import SearchCacheOptions
from osp_opt.quality.intervals import ratio_ci
from osp_opt.quality.loss import EXIT_CODES, FEWEST_JUDGED
from osp_opt.search.cache.candidates import Candidate, largest_ratio
from osp_opt.search.cache.check import check_predictor
from osp_opt.search.cache.report import Found, write_policy
from osp_opt.search.cache.rivals import judge_rivals
from osp_opt.search.cache.state import CacheSearch, open_search
from osp_opt.search.evidence import evidence_of, judge
from osp_opt.system.context import WorkerContext

__all__ = ["find", "run"]

TOLERANCE = 0.03  # a measured ratio may fall short of the wanted one by so much
ATTEMPTS = 3  # policies that are timed before the ratio counts as not delivered
TIMED = 2  # videos of the race, on which speed is measured before a policy is taken
LOSS_VIDEOS = FEWEST_JUDGED  # of the race, on which a policy's loss is looked at first
HALVINGS = 5  # of the range of ratios, in search of the fastest within a loss


def run(options: SearchCacheOptions, context: WorkerContext) -> int:
    """Search, judge, and write the policy with its provenance; 0, or how a loss was exceeded."""
    search = open_search(open_source(options, context))
    found = find(search)
    report_memory(search.maker, context)
    if context.parallel.is_main:
        write_policy(search, found)
    context.parallel.barrier()
    return 0 if found.verdict is None else EXIT_CODES[found.verdict]


def find(search: CacheSearch) -> Found:
    """What the options ask for: a ratio, or the fastest within a loss; and the caches beside it."""
    options = search.options
    if options.max_loss is not None:
        found = fastest_within(search, options.max_loss)
    elif search.samples:
        found = deliver(search, options.ratio)
    else:
        return Found(search.candidates(options.ratio, 1)[0])
    return replace(found, rivals=judge_rivals(search, found.candidate) if search.rules else ())


def deliver(search: CacheSearch, ratio: float) -> Found:
    """The best raced policy whose measured speed-up is `ratio` (within the tolerance)."""
    wanted, measured = ratio, 0.0
    for attempt in range(ATTEMPTS):
        # Choose: the score's best candidates race on latents.
        candidates = search.candidates(wanted)
        raced = search.race(candidates, search.budget if attempt == 0 else search.budget / 4)
        chosen = candidates[raced.winner]
        search.context.progress.detail(
            f"raced {len(raced.errors)} candidates; the best: {chosen.policy}"
        )
        # Is it as fast as predicted? Timed on videos that the race used already.
        speeds = search.trials.speedups(search.variant(chosen), search.race_requests[:TIMED])
        measured = ratio_ci(speeds).estimate
        forced = search.options.force and attempt == ATTEMPTS - 1
        if measured >= ratio * (1.0 - TOLERANCE) or forced:
            # Judge: it was taken because it was fast here, so it is timed anew on fresh videos.
            evidence = judge(search.trials, search.variant(chosen), search.fresh_requests)
            check = check_predictor(candidates, raced.errors, search.num_steps)
            return Found(chosen, evidence, check)
        search.say(
            f"measured {measured:.3f}x where {chosen.speedup:.3f}x was predicted; "
            "taking a larger one"
        )
        largest = largest_ratio(search.times, search.num_steps, search.scores)[0]
        wanted = min(wanted * ratio / measured * 1.005, largest)
    raise PolicyError(
        f"--ratio {ratio:g}: measured {measured:.3f}x after {ATTEMPTS} attempts; the machine "
        "may be busy: try again, or write it all the same with --force"
    )


def fastest_within(search: CacheSearch, max_loss: float) -> Found:
    """The fastest policy that is shown to lose at most `max_loss`.

    Ratios are halved on the race's videos, which choose. Two are judged on fresh ones at most, the
    chosen and the most careful one, each wrongly "kept" one time in forty.
    """
    low, high = 1.05, largest_ratio(search.times, search.num_steps, search.scores)[0]
    tried: list[tuple[Candidate, bool]] = []  # the most careful first; is its loss surely within?
    for _ in range(HALVINGS):
        ratio = min((low * high) ** 0.5, 0.999 * high)
        candidates = search.candidates(ratio, 4)
        chosen = candidates[search.race(candidates, search.budget / HALVINGS).winner]
        videos = search.race_requests[:LOSS_VIDEOS]
        (rows,) = search.trials.compared([search.variant(chosen)], videos)
        loss = evidence_of(rows).loss
        search.say(f"{chosen.speedup:.2f}x predicted: {loss.line()}, on videos that choose")
        if loss.share.estimate <= max_loss:
            tried.append((chosen, loss.verdict(max_loss) == "kept"))
            low = ratio
        else:
            high = ratio
    if not tried:
        raise PolicyError(
            f"--max-loss {100 * max_loss:g}%: no policy tried stays below it; "
            "allow more, or use more steps"
        )
    sure = [candidate for candidate, within in tried if within]
    found = judged_within(search, sure[-1] if sure else tried[0][0], max_loss)
    careful = tried[0][0]
    if found.verdict == "kept" or search.options.force or found.candidate == careful:
        return found
    search.say("taking the most careful policy that was tried")
    return judged_within(search, careful, max_loss)


def judged_within(search: CacheSearch, chosen: Candidate, max_loss: float) -> Found:
    """`chosen`, with what fresh videos say of its loss."""
    evidence = judge(search.trials, search.variant(chosen), search.fresh_requests)
    verdict = evidence.loss.verdict(max_loss)
    search.say(f"{verdict}: {evidence.loss.line()}, on fresh prompts")
    return Found(chosen, evidence, verdict=verdict)
