"""What a call of the pipeline samples by: steps, sampler and cache, from objects or from files."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from osp_opt.base.artifacts import read_meta, setting_of
from osp_opt.base.errors import OptionError
from osp_opt.cache.policy import CachePolicy
from osp_opt.sampling.arguments import check_kind
from osp_opt.sampling.denoiser import BlockLoops
from osp_opt.sampling.recipe import Recipe
from osp_opt.sampling.schedule import TimestepSchedule

__all__ = ["SamplingPlan"]


@dataclass(frozen=True)
class SamplingPlan:
    """`sampler` is the recipe's; None where that is left to the pipeline."""

    schedule: TimestepSchedule
    sampler: str | None = None
    cache: BlockLoops | CachePolicy | None = None

    @classmethod
    def of(
        cls,
        steps: int,
        timesteps: Sequence[float] | None,
        schedule: TimestepSchedule | str | Path | None,
        cache: BlockLoops | CachePolicy | str | Path | None,
        recipe: Recipe | str | Path | None,
        fingerprint: Callable[[], str | None],
    ) -> SamplingPlan:
        """The plan of what was given: a `recipe`, or steps in one of three forms and a `cache`.

        Raises OptionError where two say the same, and for a file that was made for another model
        than the one that `fingerprint` tells; for files also FileError, ScheduleError, PolicyError,
        RecipeError.
        """
        check_kind("recipe", recipe, (Recipe, str, Path), "a Recipe or its file")
        check_kind("schedule", schedule, (TimestepSchedule, str, Path), "a schedule or its file")
        given = {"timesteps": timesteps, "schedule": schedule, "cache": cache}
        if recipe is not None:
            said = next((name for name, value in given.items() if value is not None), None)
            if said is not None:
                raise OptionError(f"{said} and recipe exclude each other; give one")
            if not isinstance(recipe, Recipe):
                _check_model(recipe, "recipe", fingerprint)
                recipe = Recipe.from_file(recipe)
            return cls(TimestepSchedule.from_recipe(recipe), recipe.sampler, recipe.policy)
        if timesteps is not None:
            if schedule is not None:
                raise OptionError("timesteps and schedule exclude each other; give one")
            schedule = TimestepSchedule(_floats(timesteps))
        elif schedule is None:
            schedule = TimestepSchedule.uniform(steps)
        elif not isinstance(schedule, TimestepSchedule):
            _check_model(schedule, "schedule", fingerprint)
            schedule = TimestepSchedule.from_file(schedule)
        if isinstance(cache, (str, Path)):
            _check_model(cache, "cache policy", fingerprint)
            cache = CachePolicy.from_file(cache)
        return cls(schedule, None, cache)


def _floats(timesteps: Sequence[float]) -> tuple[float, ...]:
    try:
        return tuple(float(t) for t in timesteps)
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"timesteps is {timesteps!r:.60}; it must be a list of numbers"
        ) from error


def _check_model(path: str | Path, what: str, fingerprint: Callable[[], str | None]) -> None:
    """Refuse a file whose sidecar names another model; warn where the models cannot be compared."""
    made_for = setting_of(read_meta(path)).get("model")
    if made_for is None:
        return
    model = fingerprint()
    if model is None:
        warnings.warn(
            f"{what} {path}: nothing tells whether it was made for this model, whose parts were "
            "put together by hand",
            stacklevel=4,
        )
    elif model != made_for:
        raise OptionError(
            f"{what} {path} was made for another model; search it for this one, or pass what it "
            "holds as an object"
        )
