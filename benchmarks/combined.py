"""Section `combined`: fewer steps, a cache, and both together, at what speed and quality."""

from __future__ import annotations

from typing import Any

from benchmarks.cache import FOUR_FIELD, FREE, policy_entrant, searched_policy
from benchmarks.contest import Entrant, NotRun, contest, reason_of, summary
from benchmarks.lab import Lab
from benchmarks.steps import searched
from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import OspOptError
from osp_opt.options import OptimizeOptions
from osp_opt.sampling.recipe import Recipe
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.tiny.prompts import load_prompts

__all__ = ["run", "searched_recipe"]

RATIO = 1.3
SPEEDS = (4.0, 8.0)  # asked of optimize


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
    for speed in SPEEDS:
        recipe = searched_recipe(lab, speed)
        if isinstance(recipe, NotRun):
            missing.append(recipe)
        else:
            entrants.append(recipe)
    measured, failed = contest(lab, "combined", entrants, lab.judging(size.judges[2]))
    return {
        "rows": [summary(entrant, rows) for entrant, rows in measured],
        "not_run": [vars(item) for item in (*missing, *failed)],
    }


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
        return NotRun("recipe", f"--speedup {speed:g}", held["refused"])
    recipe = Recipe.model_validate(held["recipe"])
    schedule = TimestepSchedule.from_recipe(recipe)
    policy = recipe.policy
    setting = f"--speedup {speed:g}: {held['about']['recipe']}"
    if policy is None:
        return Entrant("recipe", setting, schedule, about=held["about"])
    return policy_entrant(lab, "recipe", setting, policy, held["about"], schedule)
