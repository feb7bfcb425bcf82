"""Section `combined`: fewer steps, a cache, and both together, at what speed and quality."""

from __future__ import annotations

from typing import Any

from benchmarks.cache import FOUR_FIELD, FREE, searched_policy
from benchmarks.contest import Entrant, NotRun, contest, summary
from benchmarks.lab import Lab
from benchmarks.steps import searched
from osp_opt.sampling.schedule import TimestepSchedule

__all__ = ["run"]

RATIO = 1.3


def run(lab: Lab) -> dict[str, Any]:
    """Measure steps alone, cache alone and both on fresh prompts, in turns."""
    size = lab.size
    schedules = {
        int(length): TimestepSchedule(tuple(values["timesteps"]))
        for length, values in searched(lab).items()
    }
    entrants: list[Entrant] = []
    missing: list[NotRun] = []
    for length, schedule in schedules.items():
        entrants.append(Entrant("steps", f"{length} searched steps", schedule))
    wanted: list[tuple[str, str, float, tuple[str, TimestepSchedule] | None]] = [
        ("cache", FREE, ratio, None) for ratio in size.free_ratios
    ]
    for length in (size.half, size.third):
        for kind in (FOUR_FIELD, FREE):
            wanted.append(("steps + cache", kind, RATIO, (f"{length}", schedules[length])))
    for method, kind, ratio, schedule in wanted:
        found = searched_policy(lab, kind, ratio, schedule)
        if isinstance(found, NotRun):
            steps = f", {schedule[0]} steps" if schedule else ""
            missing.append(NotRun(method, f"{kind}{steps} {found.setting}", found.reason))
            continue
        prefix = f"{schedule[0]} searched steps, " if schedule else ""
        setting = f"{prefix}{kind.removeprefix('osp-opt ')} {found.setting}"
        entrants.append(
            Entrant(method, setting, found.schedule, found.opened, found.content, found.about)
        )
    measured, failed = contest(lab, "combined", entrants, lab.judging(size.judges[2]))
    return {
        "rows": [summary(entrant, rows) for entrant, rows in measured],
        "not_run": [vars(item) for item in (*missing, *failed)],
    }
