"""Section `combined`: every way to be faster, alone and together, by the converged video.

The original errs by its own steps, so what counts is the distance to `CONVERGED` times as many
steps of the same noise. `goals.py` reads its table off these rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.cache import FREE, policy_entrant, searched_policy
from benchmarks.contest import Entrant, NotRun, contest, reason_of, summary
from benchmarks.lab import CONVERGED, Lab
from benchmarks.steps import searched
from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import OspOptError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.options import OptimizeOptions
from osp_opt.sampling.recipe import Recipe
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.recipe.schedules import CorrectedSchedules
from osp_opt.tiny.prompts import load_prompts

__all__ = ["RATIO", "run", "searched_recipe"]

RATIO = 1.3
INTERVALS = (2, 3)  # of the negative branch
SPEEDS = (2.0, 4.0, 8.0)  # asked of optimize


def run(lab: Lab) -> dict[str, Any]:
    """Measure everything on fresh prompts, in turns."""
    found = [*_steps(lab), *_guidance(lab), *_caches(lab)]
    found += [searched_recipe(lab, speed) for speed in SPEEDS]
    entrants = [each for each in found if isinstance(each, Entrant)]
    missing = [each for each in found if isinstance(each, NotRun)]
    measured, failed = contest(lab, "combined", entrants, lab.judging(lab.size.judges[2]))
    return {
        "rows": [summary(entrant, rows) for entrant, rows in measured],
        "not_run": [vars(item) for item in (*missing, *failed)],
        "converged": CONVERGED * len(lab.reference),
    }


def _steps(lab: Lab) -> Iterator[Entrant]:
    """Fewer steps: uniform, corrected, searched, and the planner's corrected ones."""
    full = len(lab.reference)
    planner = CorrectedSchedules(lab.calibration, lab.maker.kind)
    plain = searched(lab)
    for length in (full, *lab.size.lengths):
        uniform = TimestepSchedule(TimestepSchedule.uniform(length).timesteps)
        corrected = planner.uniform(length).schedule
        about = {"counted": full / length}
        yield Entrant("uniform", f"{length} steps", uniform, about=about)
        yield Entrant("uniform, corrected", f"{length} steps", corrected, about=about)
        if f"{length}" in plain:
            steps = TimestepSchedule(tuple(plain[f"{length}"]["timesteps"]))
            yield Entrant("search-steps", f"{length} steps", steps, about=about)
        if length < full:
            best = planner.of_length(length)[0][0].schedule
            yield Entrant("recipe without reuse", f"{length} steps", best, about=about)


def _guidance(lab: Lab) -> Iterator[Entrant]:
    """The negative branch at some of the original's steps only."""
    steps = len(lab.reference)
    for interval in INTERVALS:
        policy = CachePolicy.explicit({}, steps, guidance=GuidancePlan.every(interval, steps))
        yield _counted(lab, "guidance reuse", f"at 1 of {interval} steps", policy, {})


def _caches(lab: Lab) -> Iterator[Entrant | NotRun]:
    """Reuse alone at full length, and block reuse on searched steps."""
    third = lab.size.third
    steps = TimestepSchedule(tuple(searched(lab)[f"{third}"]["timesteps"]))
    wanted = [(ratio, None) for ratio in lab.size.reuse_ratios]
    for ratio, schedule in [*wanted, (RATIO, (f"{third}", steps))]:
        found = searched_policy(lab, FREE, ratio, schedule)
        if isinstance(found, NotRun):
            yield found
            continue
        policy = CachePolicy.from_json(found.about["policy"])
        method = "search-cache free" if schedule is None else "search-steps, search-cache free"
        setting = f"{len(found.schedule)} steps, --ratio {ratio:g}"
        yield _counted(lab, method, setting, policy, found.about, found.schedule)


def _counted(
    lab: Lab,
    method: str,
    setting: str,
    policy: CachePolicy,
    about: dict[str, Any],
    schedule: TimestepSchedule | None = None,
) -> Entrant:
    """A policy as an entrant, with its speed counted in evaluations of blocks by a branch."""
    steps = len(schedule or lab.reference)
    counted = len(lab.reference) / steps * policy.speedup(lab.maker.num_blocks, steps)
    return policy_entrant(lab, method, setting, policy, {**about, "counted": counted}, schedule)


def searched_recipe(lab: Lab, speed: float) -> Entrant | NotRun:
    """What `osp-opt optimize` writes for a speed-up; NotRun when it refuses."""
    options = OptimizeOptions(
        **lab.common,
        workdir=lab.work / "recipes" / f"{speed:g}",
        text_prompt=load_prompts("verification"),
        calibration=lab.calibration_folder,
        speedup=speed,
    )

    def measure() -> dict[str, Any]:
        print(f"  osp-opt optimize, {speed:g}x", flush=True)
        try:
            lab.run_job(options)
        except OspOptError as error:
            return {"refused": reason_of(error)}
        meta = read_meta(options.recipe_path) or {}
        recipe = Recipe.from_file(options.recipe_path)
        about = {name: meta[name] for name in ("recipe", "predicted_speedup", "generations_spent")}
        return {"recipe": recipe.model_dump(mode="json"), "about": about}

    held = lab.remembered(f"optimize {speed:g}", measure)
    if "refused" in held:
        return NotRun("optimize", f"--speedup {speed:g}", held["refused"])
    recipe = Recipe.model_validate(held["recipe"])
    schedule = TimestepSchedule.from_recipe(recipe)
    policy = recipe.policy
    setting = f"--speedup {speed:g}: {held['about']['recipe']}"
    if policy is None:
        about = {**held["about"], "counted": len(lab.reference) / len(schedule)}
        return Entrant("optimize", setting, schedule, about=about)
    return _counted(lab, "optimize", setting, policy, held["about"], schedule)
