"""The videos that decide in a search: who chooses does not testify."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from osp_opt.calibration.statistics import Calibration
from osp_opt.generate.prompts import default_prompts, given_prompts
from osp_opt.options import SearchOptions
from osp_opt.pipelines.maker import Request

__all__ = ["Deciding", "deciding_requests"]


@dataclass(frozen=True)
class Deciding:
    """`race` chooses among candidates, `fresh` judges the one that was chosen; they share no video.

    `note` says, for the user, where they come from when it is not simply the prompts given.
    """

    race: tuple[Request, ...]
    fresh: tuple[Request, ...]
    note: str | None = None


def deciding_requests(
    options: SearchOptions, calibration: Calibration, *, race: int, fresh: int
) -> Deciding:
    """At least `race` videos to choose by, and `fresh` others to judge by (0: none).

    Of the prompts given (else the package's), those that the calibration did not see do both, some
    one and some the other. Where there are none, those it saw choose, with other seeds; what judges
    then are prompts of the package.
    """
    given = list(dict.fromkeys(given_prompts(options) or default_prompts(options, "verification")))
    unseen = [prompt for prompt in given if prompt not in calibration.prompts]
    if len(unseen) > 1 or (unseen and not fresh):
        split = len(unseen) - min(fresh, len(unseen) // 2)
        choosing, judging = unseen[:split], unseen[split:]
        return Deciding(
            _videos(choosing, race, options.seed), _videos(judging, fresh, options.seed)
        )
    seed = options.seed if unseen else max((options.seed, *calibration.seeds)) + 1
    choosing = unseen or given
    note = "one prompt was not calibrated on: it chooses"
    if not unseen:
        note = f"the prompts were calibrated on: they choose, with other seeds (from {seed} on)"
    if not fresh:
        return Deciding(_videos(choosing, race, seed), (), note)
    general = [
        prompt
        for prompt in default_prompts(options, "verification")
        if prompt not in given and prompt not in calibration.prompts
    ]
    if not general:  # the package's own were calibrated on, too
        further = seed + -(-race // len(choosing))
        note += f"; seeds from {further} on judge"
        return Deciding(_videos(choosing, race, seed), _videos(given, fresh, further), note)
    note += f"; {min(fresh, len(general))} prompts of the package judge"
    return Deciding(
        _videos(choosing, race, seed), _videos(general[:fresh], fresh, options.seed), note
    )


def _videos(prompts: Sequence[str], count: int, first_seed: int) -> tuple[Request, ...]:
    """`count` videos, or one per prompt if that is more; further seeds when prompts run out."""
    requests = (Request(prompt, seed) for seed in itertools.count(first_seed) for prompt in prompts)
    return tuple(itertools.islice(requests, max(count, len(prompts)) if prompts else 0))
