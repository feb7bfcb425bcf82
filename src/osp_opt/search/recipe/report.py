"""What `optimize` leaves: recipe.json with its provenance, and what it tells."""

from __future__ import annotations

from typing import Any

from osp_opt import __version__
from osp_opt.base.artifacts import beside_others, write_meta
from osp_opt.options import following
from osp_opt.sampling.recipe import Recipe
from osp_opt.search.recipe.proof import Found
from osp_opt.search.recipe.state import RecipeSearch

__all__ = ["write_recipe"]


def write_recipe(search: RecipeSearch, found: Found) -> None:
    """Write the recipe and its provenance; print what it gives and what it loses."""
    options, progress = search.options, search.context.progress
    path, meta = options.recipe_path, _meta(search, found)
    if options.out != path:  # a file that was named is that file
        path = beside_others(path, meta["asked"], meta["asked"]["goal"])
    variant = found.candidate.variant
    setting = search.maker.setting(variant.schedule)
    Recipe(
        sampler=setting.sampler,
        levels=setting.levels,
        timesteps=list(variant.schedule.timesteps),
        corrections=list(variant.schedule.corrections),
        cache=None if variant.policy is None else variant.policy.to_json(),
    ).save(path)
    write_meta(path, meta)
    lines = [f"recipe: {path}: {found.candidate}", *found.lines()]
    progress.detail(f"work spent on sampling: {search.trials.spent:.1f} generations")
    progress.result(
        lines,
        {"recipe": str(path), "told": str(found.candidate), "measured": meta["measured"]},
        following(options, "sample", "--recipe", str(path)),
    )
    if not found.better:
        plain = len(found.plain_variant.schedule)
        progress.warn(
            f"the fresh videos do not show it to be nearer than {plain} plain steps; "
            "more of them may (--verify-prompts)"
        )


def _meta(search: RecipeSearch, found: Found) -> dict[str, Any]:
    options, candidate = search.options, found.candidate
    goal = f"{options.speedup:g}x" if options.max_loss is None else f"{100 * options.max_loss:g}%"
    return {
        "made_by": f"osp-opt {__version__} optimize",
        # What tells this search's result from others in the same folder.
        "asked": {"goal": goal},
        "setting": search.maker.setting(candidate.variant.schedule).as_json(),
        "recipe": str(candidate),
        "calls_per_step": search.maker.calls_per_step,
        "device": search.context.device.name,
        "layout": str(search.context.parallel.layout),
        "block_times_seconds": search.times.as_json(),
        "predicted_speedup": candidate.speedup,
        **found.as_json(),
        "race": [
            {"recipe": str(each), "predicted": each.predicted, "errors": errors}
            for each, errors in found.race
        ],
        "generations_spent": search.trials.spent,
    }
