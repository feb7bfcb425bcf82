"""A recipe: everything that makes sampling faster, in one file. No torch in here.

`recipe.json` holds the sampler, the timesteps, the correction of each step, and what is reused of
blocks and of guidance at each. It stands for the three files that could be given one by one, of
which the reference's formats hold no corrections.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from osp_opt.base.artifacts import read_json, write_json
from osp_opt.base.errors import InputError, OptionError, RecipeError
from osp_opt.base.samplers import FOLLOW_TIMESTEPS, MAX_STEPS, SAMPLER_KINDS, STEERABLE
from osp_opt.cache.policy import CachePolicy
from osp_opt.options import SampleOptions
from osp_opt.sampling.levels import check_corrections, check_timesteps

__all__ = ["RECIPE_FORMAT", "Recipe", "recipe_of"]

RECIPE_FORMAT: Final = "osp-opt/recipe/1"


class Recipe(BaseModel):
    """How videos are sampled. Steps are in sampling order, noisiest first.

    sampler: one of ours, or the class of another pipeline's scheduler.
    levels: "flow" where timesteps are 1000 s of flow matching, up to 1000.
    timesteps: [n], descending within [0, 999].
    corrections: [n], of each step (see `TimestepSchedule`); empty: plain steps.
    cache: what is reused, as a cache policy; None: nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal["osp-opt/recipe/1"] = RECIPE_FORMAT
    sampler: str
    levels: Literal["flow"] | None = None
    timesteps: list[float] = Field(min_length=1, max_length=MAX_STEPS)
    corrections: list[float] = Field(default=[], max_length=MAX_STEPS)
    cache: dict[str, Any] | None = None

    @field_validator("sampler")
    @classmethod
    def _takes_recipes(cls, value: str) -> str:
        if value not in (*FOLLOW_TIMESTEPS, *STEERABLE):
            known = ", ".join(FOLLOW_TIMESTEPS)
            raise ValueError(f"is {value!r:.60}, which takes no recipe; these do: {known}")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        """What the parts say of themselves and of each other."""
        try:
            check_timesteps(self.timesteps, flow=self.levels is not None)
            if any(self.corrections):
                check_corrections(self.corrections, len(self.timesteps))
            policy = self.policy
        except InputError as error:
            raise ValueError(str(error)) from None
        kind = SAMPLER_KINDS.get(self.sampler)  # of others the scheduler decides
        first_order = kind is None or kind.takes_corrections
        if any(self.corrections) and not first_order:
            raise ValueError(f"sampler {self.sampler} takes no corrected steps")
        planned = len(policy.plan) if policy is not None else 0
        if planned and first_order and planned != len(self.timesteps):
            raise ValueError(f"its cache is for {planned} steps, and it has {len(self.timesteps)}")
        return self

    @property
    def policy(self) -> CachePolicy | None:
        """What is reused. Raises PolicyError for what is no policy."""
        return None if self.cache is None else CachePolicy.from_json(self.cache)

    @classmethod
    def from_file(cls, path: str | Path) -> Recipe:
        """Read `recipe.json`. Raises FileError (unreadable) or RecipeError (content)."""
        data = read_json(path, "recipe")
        if not isinstance(data, Mapping) or data.get("format") != RECIPE_FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else None
            raise RecipeError(f"recipe {path}: format is {found!r:.60}, not {RECIPE_FORMAT!r}")
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            place = " ".join(map(str, first["loc"]))
            said = first["msg"].removeprefix("Value error, ")
            raise RecipeError(f"recipe {path}: {f'{place}: ' if place else ''}{said}") from None

    def save(self, path: str | Path) -> None:
        """Write the file that `from_file` reads, atomically."""
        unsaid = {"levels"} if self.levels is None else set()
        write_json(path, self.model_dump(mode="json", exclude=unsaid))


def recipe_of(options: SampleOptions) -> Recipe | None:
    """The recipe that `options` name, if they do. Raises OptionError for another sampler, and
    where one of the two is a model of Open-Sora-Plan and the other a pipeline.
    """
    if options.recipe is None:
        return None
    recipe = Recipe.from_file(options.recipe)
    if (recipe.sampler in STEERABLE) != (options.pipeline is not None):
        made_for = "a model of Open-Sora-Plan; leave out --pipeline"
        if recipe.sampler in STEERABLE:
            made_for = f"a pipeline with {recipe.sampler}; name it with --pipeline"
        raise OptionError(f"--recipe {options.recipe}: was made for {made_for}")
    if "sampler" in options.model_fields_set and options.sampler != recipe.sampler:
        raise OptionError(
            f"--sampler {options.sampler}: {options.recipe} was made for {recipe.sampler}; "
            "leave --sampler out"
        )
    return recipe
