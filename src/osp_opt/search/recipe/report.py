"""What `optimize` leaves: recipe.json with its provenance, and what it tells."""

from __future__ import annotations

from typing import Any

from osp_opt import __version__
from osp_opt.base.artifacts import beside_others, write_meta
from osp_opt.generate.recipe import Recipe
from osp_opt.search.recipe.proof import Found
from osp_opt.search.recipe.state import RecipeSearch

__all__ = ["write_recipe"]


def write_recipe(search: RecipeSearch, found: Found) -> None:
    """Write the recipe and its provenance; print what it gives and what it loses."""
    options, say = search.options, search.say
    path, meta = options.recipe_path, _meta(search, found)
    if options.out != path:  # a file that was named is that file
        path = beside_others(path, meta["asked"], meta["asked"]["goal"])
    variant = found.candidate.variant
    Recipe(
        sampler=options.sampler,
        timesteps=list(variant.schedule.timesteps),
        corrections=list(variant.schedule.corrections),
        cache=None if variant.policy is None else variant.policy.to_json(),
    ).save(path)
    write_meta(path, meta)
    say(f"recipe: {found.candidate}")
    for line in found.evidence.lines():
        say(line)
    if search.source.yardstick is not None:
        say(search.source.yardstick.line(found.evidence.psnr))
    plain = len(found.plain_variant.schedule)
    gain = found.gain.text(digits=1, unit=" dB")
    say(f"{plain} plain even steps: {found.plain.psnr.text(digits=1, unit=' dB')}, gain {gain}")
    if not found.better:
        say("warning: the fresh videos do not show that it is nearer than those; more of them may")
    say(f"work spent on sampling: {search.trials.spent:.1f} generations")
    say(f"use it: osp-opt sample --recipe {path}")


def _meta(search: RecipeSearch, found: Found) -> dict[str, Any]:
    options, candidate = search.options, found.candidate
    goal = f"{options.speedup:g}x" if options.max_loss is None else f"{100 * options.max_loss:g}%"
    return {
        "made_by": f"osp-opt {__version__} optimize",
        # What tells this search's result from others in the same folder.
        "asked": {"goal": goal},
        "setting": search.maker.setting(candidate.variant.schedule).as_json(),
        "recipe": str(candidate),
        "device": search.context.device.name,
        "layout": str(search.context.parallel.layout),
        "block_times_seconds": search.times.as_json(),
        "predicted_speedup": candidate.speedup,
        "measured": found.evidence.as_json(),
        "plain": {
            "steps": len(found.plain_variant.schedule),
            **found.plain.as_json(),
            "psnr_gain": found.gain.as_json(),
            "shown_better": found.better,
        },
        "race": [
            {"recipe": str(each), "predicted": each.predicted, "errors": errors}
            for each, errors in found.race
        ],
        "verified_on": found.videos,
        "generations_spent": search.trials.spent,
    }
