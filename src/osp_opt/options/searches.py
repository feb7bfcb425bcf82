"""The options of the searches: search-steps, search-cache, and optimize for both at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, field_validator, model_validator

from osp_opt.base.samplers import MAX_STEPS
from osp_opt.options.base import Fraction, Numbers, option, split_list
from osp_opt.options.calibrate import CalibrateOptions
from osp_opt.options.groups import (
    SCHEDULE,
    STEPS_ALIASES,
    CacheMemoryOptions,
    LaunchOptions,
    SamplingOptions,
    check_follows,
    check_makes,
    file_at,
)


class SearchOptions(SamplingOptions, LaunchOptions):
    """What both searches share."""

    goal: ClassVar[str]  # the option that says what is wanted, unless --max-loss does

    def calibrate_options(self, most_prompts: int) -> CalibrateOptions:
        """Those of the calibration to make where there is none: with the first prompts given."""
        shared = self.model_fields_set & set(CalibrateOptions.model_fields) - {"steps", "out"}
        values = {name: getattr(self, name) for name in shared - {"workdir"}}
        return CalibrateOptions(**values, workdir=self.workdir, num_prompts=most_prompts)

    calibration: Path | None = option(
        None,
        "Calibration folder; default WORKDIR/calibration.",
        panel="Job",
        metavar="DIR",
    )
    verify: bool | None = option(
        None,
        "Judge the winner on fresh prompts, which chose nothing; without it nothing is claimed. "
        "Default: with the bundled model.",
        panel="Verification",
    )
    verify_prompts: int = option(
        8,
        "Fresh prompts that judge the winner (2 generations each, about).",
        panel="Verification",
        unit="prompts",
        ge=1,
    )
    max_loss: Fraction | None = option(
        None,
        "Largest acceptable loss of quality, such as 1%, in place of a length or ratio; exit code "
        "3 when more is lost, 4 when neither is shown.",
        panel="Verification",
        metavar="PERCENT",
        gt=0,
        lt=1,
    )
    force: bool = option(
        False, "Write the result even if it was not shown to be good.", panel="Verification"
    )
    save_img_path: Path | None = option(
        None,
        "Accepted, as the reference tool has it; a search keeps no videos.",
        panel="Verification",
        metavar="DIR",
        identity=False,
    )

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if self.max_loss is not None and self.goal in self.model_fields_set:
            raise ValueError(f"--max-loss: finds --{self.goal} itself; give one of the two")
        if self.max_loss is not None and self.verify is False:
            raise ValueError("--max-loss: needs videos to be sampled; leave out --no-verify")
        return self

    @property
    def verifies(self) -> bool:
        """Whether a winner is judged on fresh prompts: with the bundled model, or when asked to."""
        if self.verify is None:
            return self.is_bundled or self.max_loss is not None
        return self.verify

    @property
    def calibration_dir(self) -> Path:
        """Where the calibration is: as `with_predecessors` found it, else the usual place."""
        return self.calibration or self.workdir / "calibration"


class SearchStepsOptions(SearchOptions):
    """Find the timesteps that make the same videos in fewer steps."""

    command: ClassVar[str] = "search-steps"
    folder: ClassVar[str | None] = "search-steps"
    goal: ClassVar[str] = "steps"
    common: ClassVar[tuple[str, ...]] = (
        *("steps", "max_loss", "verify", "budget", "prompt_file", "text_prompt"),
        *("calibration", "videos_path", "out", "workdir", "nproc_per_node"),
    )
    pipeline_steps: ClassVar[Any] = (25,)
    example: ClassVar[str] = "--steps 50 --verify"

    steps: Numbers = option(
        (50,),
        "Length of the schedule; several, separated by commas, write one schedule each; with "
        "--pipeline 25.",
        panel="Job",
        aliases=STEPS_ALIASES,
        metavar="N[,N...]",
        min_length=1,
    )
    all_steps: bool = option(
        False, "Write a schedule of every length below the original's, and a table.", panel="Job"
    )
    method: Literal["dp", "ays"] = option(
        "dp",
        "dp: exact optimum on the recorded table; ays: coordinate descent.",
        panel="Job",
    )
    objective: Literal["auto", "distribution", "video"] = option(
        "auto",
        "Stay close to the distribution, to the very video, or whatever verifies best.",
        panel="Job",
    )
    neighbour_type: Literal["uniform", "random"] = option(
        "uniform", "Candidates of each timestep (method ays).", panel="Job"
    )
    monte_carlo_iters: int = option(
        5, "Samples per estimate (method ays).", panel="Job", ge=1, le=10_000
    )
    candidates: int = option(
        11, "Candidates per timestep (method ays).", panel="Job", ge=2, le=1000
    )
    guided: bool = option(
        True,
        "Evaluate candidates with guidance, as in sampling (method ays).",
        panel="Job",
        off="unguided",
    )
    budget: float = option(
        10,
        "Work spent on choosing, per length.",
        panel="Verification",
        unit="generations",
        gt=0,
    )
    videos_path: Path | None = option(
        None,
        "Calibrate on this folder instead: 5 to 20 mp4s, or one made by calibrate.",
        panel="Job",
        metavar="DIR",
    )
    resize: bool = option(
        False, "Resize the videos of --videos-path to the sampled size.", panel="Job"
    )
    search_type: Literal["restep"] = option(
        "restep", "Only restep here; dit_cache is `osp-opt search-cache`.", panel="Job"
    )
    out: Path | None = option(
        None,
        "Folder or file for the schedule; default RUN_FOLDER/searched_schedule.txt.",
        panel="Job",
        short="o",
        aliases=("save_dir",),
        metavar="PATH",
        identity=False,
    )

    @field_validator("steps")
    @classmethod
    def _in_range(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        for steps in value:
            if not 2 <= steps <= MAX_STEPS:
                raise ValueError(f"each must be within 2 and {MAX_STEPS} steps")
        return value

    @model_validator(mode="after")
    def _all_steps_alone(self) -> Self:
        if self.pipeline is not None and self.method == "ays":
            raise ValueError("--method ays: means nothing to a --pipeline; leave one out")
        if self.all_steps and self.max_loss is not None:
            raise ValueError("--all-steps: samples nothing, which --max-loss needs; give one")
        check_follows(self.sampler)
        return self

    @field_validator("search_type", mode="before")
    @classmethod
    def _right_command(cls, value: Any) -> Any:
        if value == "dit_cache":
            raise ValueError("use `osp-opt search-cache` to search a cache")
        return value

    @property
    def schedule_path(self) -> Path:
        """Where the schedule is written (the first one, when there are several)."""
        return file_at(self.out or self.run_dir, "searched_schedule.txt", ".txt", ".json")


class SearchCacheOptions(SearchOptions, CacheMemoryOptions):
    """Find which transformer blocks can be reused, and when, for a wanted speed-up."""

    command: ClassVar[str] = "search-cache"
    folder: ClassVar[str | None] = "search-cache"
    goal: ClassVar[str] = "ratio"
    common: ClassVar[tuple[str, ...]] = (
        *("ratio", "max_loss", "policy", "steps", "schedule", "verify", "budget"),
        *("prompt_file", "calibration", "out", "workdir", "nproc_per_node"),
    )
    pipeline_steps: ClassVar[Any] = 50
    example: ClassVar[str] = "--ratio 1.3 --verify"

    steps: int = option(
        100,
        "Sampling steps that the cache is for (with --schedule: what the file says); with "
        "--pipeline 50.",
        panel="Job",
        aliases=STEPS_ALIASES,
        unit="steps",
        ge=2,
        le=MAX_STEPS,
    )
    ratio: float = option(
        1.3,
        "Wanted measured speed-up of denoising.",
        panel="Job",
        aliases=("cache_ratio",),
        unit="times",
        gt=1,
        le=20,
    )
    schedule: Path | None = option(
        None,
        SCHEDULE + " The cache is then for these steps; default: what search-steps left.",
        panel="Job",
        aliases=("schedule_timestep",),
        metavar="FILE",
    )
    policy: Literal["four-field", "free"] = option(
        "free",
        "free: any blocks at any step; four-field: a file that the reference tool reads, as its "
        "own flags imply.",
        panel="Job",
    )
    budget: float = option(
        24, "Work spent on choosing.", panel="Verification", unit="generations", gt=0
    )
    also: Annotated[tuple[Literal["magcache", "teacache"], ...], BeforeValidator(split_list)] = (
        option(
            (),
            "Judge these caches too, with their constants for this model, at the speed of the "
            "policy found: magcache, teacache.",
            panel="Verification",
            metavar="NAMES",
        )
    )
    search_type: Literal["dit_cache"] = option(
        "dit_cache", "Only dit_cache here; restep is `osp-opt search-steps`.", panel="Job"
    )
    out: Path | None = option(
        None,
        "Folder or file for the policy; default RUN_FOLDER/dit_cache_config.json.",
        panel="Job",
        short="o",
        aliases=("save_dir",),
        metavar="PATH",
        identity=False,
    )
    cache_save_path: Path | None = option(
        None,
        "As --out, in the reference tool's words: the file is then one that it reads.",
        panel="Job",
        metavar="PATH",
        identity=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _of_the_reference_tool(cls, values: Any) -> Any:
        """Its flags ask for its file, unless --policy says otherwise."""
        if not isinstance(values, dict) or not values.keys() & {"cache_save_path", "search_type"}:
            return values
        place = values.get("cache_save_path")
        if place is not None and values.get("out") is not None:
            raise ValueError("--cache-save-path and --out name one place; give one")
        named = {} if place is None else {"out": place, "cache_save_path": None}
        return {"policy": "four-field", **values, **named}

    @model_validator(mode="after")
    def _rivals_are_sampled(self) -> SearchCacheOptions:
        if self.also and not (self.verifies or self.max_loss is not None):
            raise ValueError("--also: only sampled videos compare caches; add --verify")
        return self

    @model_validator(mode="after")
    def _possible_steps(self) -> SearchCacheOptions:
        if self.schedule is None:
            check_makes(self.sampler, self.steps)
        else:
            check_follows(self.sampler)
        return self

    @field_validator("search_type", mode="before")
    @classmethod
    def _right_command(cls, value: Any) -> Any:
        if value == "restep":
            raise ValueError("use `osp-opt search-steps` to search a schedule")
        return value

    @property
    def policy_path(self) -> Path:
        """Where the policy is written."""
        return file_at(self.out or self.run_dir, "dit_cache_config.json", ".json")


class OptimizeOptions(SearchOptions, CacheMemoryOptions):
    """Find the recipe of a wanted speed that loses least: steps, corrections, what is reused."""

    command: ClassVar[str] = "optimize"
    folder: ClassVar[str | None] = "optimize"
    goal: ClassVar[str] = "speedup"
    common: ClassVar[tuple[str, ...]] = (
        *("speedup", "max_loss", "budget", "verify_prompts", "prompt_file", "text_prompt"),
        *("model_path", "pipeline", "calibration", "out", "workdir", "nproc_per_node"),
    )
    example: ClassVar[str] = "--speedup 4"

    speedup: float = option(
        4.0,
        "Wanted measured speed-up of denoising.",
        panel="Job",
        unit="times",
        gt=1,
        le=100,
    )
    verify_prompts: int = option(
        3,
        "Fresh prompts that judge the winner (about 3 generations each at 4x).",
        panel="Verification",
        unit="prompts",
        ge=1,
    )
    budget: float = option(
        16,
        "Work spent on choosing and judging together.",
        panel="Verification",
        unit="generations",
        gt=0,
    )
    out: Path | None = option(
        None,
        "Folder or file for the recipe; default RUN_FOLDER/recipe.json.",
        panel="Job",
        metavar="PATH",
        identity=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _enough_for_a_verdict(cls, values: Any) -> Any:
        """A limit of loss takes twice the videos that a speed does, and the work for them."""
        if not isinstance(values, dict) or values.get("max_loss") is None:
            return values
        return {"verify_prompts": 6, "budget": 30.0, **values}

    @property
    def recipe_path(self) -> Path:
        """Where the recipe is written."""
        return file_at(self.out or self.run_dir, "recipe.json", ".json")

    @model_validator(mode="after")
    def _samples(self) -> Self:
        if self.verify is False:
            raise ValueError("--no-verify: only sampling compares recipes; leave it out")
        check_follows(self.sampler, "recipe")
        return self
