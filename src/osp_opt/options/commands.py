"""The options of every subcommand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator
from typing_extensions import Self

from osp_opt.base.artifacts import read_json
from osp_opt.base.errors import FileError
from osp_opt.base.samplers import FOLLOW_TIMESTEPS, MAX_STEPS, SAMPLER_KINDS
from osp_opt.options.base import STATE_FOLDER, Fraction, Numbers, Options, option
from osp_opt.options.groups import (
    DTYPE_ALIASES,
    DeviceOptions,
    LaunchOptions,
    ModelOptions,
    SamplingOptions,
    ShapeOptions,
)

_STEPS_ALIASES = ("num_sampling_steps", "num_inference_steps")
_SCHEDULE = "Searched schedule: JSON list of timesteps / 1000."
CALIBRATION_FILE = "calibration.safetensors"
"""The statistics of a calibration, inside its folder."""
CALIBRATED_PROMPTS = 8
"""Used to calibrate when nobody says how many."""
CALIBRATION_NOTE = "calibration.json"
"""In the working folder: where the last calibration is."""


def _can_make(sampler: str, steps: int) -> None:
    """Raise ValueError for a number of steps that a sampler cannot make."""
    kind = SAMPLER_KINDS[sampler]
    if not kind.fewest <= steps <= kind.most:
        raise ValueError(
            f"--steps {steps}: {sampler} makes {kind.fewest} to {kind.most} steps; "
            "choose so many, or another --sampler"
        )


class CalibrateOptions(SamplingOptions, LaunchOptions):
    """Sample with the original model and record what the searches need."""

    command: ClassVar[str] = "calibrate"
    folder: ClassVar[str | None] = "calibration"
    common: ClassVar[tuple[str, ...]] = (
        "num_prompts",
        "prompt_file",
        "text_prompt",
        "steps",
        "guidance_scale",
        "model_path",
        "seed",
        "out",
        "workdir",
        "nproc_per_node",
    )
    example: ClassVar[str] = "--model-path NAME/REPO/29x480p --prompt-file prompts.txt"

    steps: int = option(
        100,
        "Steps of the original model, and levels of the table.",
        panel="Job",
        aliases=_STEPS_ALIASES,
        unit="steps",
        ge=2,
        le=MAX_STEPS,
    )
    num_prompts: int | None = option(
        None,
        "Use only the first prompts; default: all that are given, 8 of the bundled ones.",
        panel="Job",
        unit="prompts",
        ge=1,
    )
    yardstick: bool | None = option(
        None,
        "Sample two videos in four times as many steps too: the scale of a loss; default: with the "
        "bundled model.",
        panel="Job",
    )
    out: Path | None = option(
        None,
        "Folder for videos and statistics; default WORKDIR/calibration.",
        panel="Job",
        short="o",
        aliases=("save_img_path", "save_dir"),
        metavar="DIR",
        identity=False,
    )

    @model_validator(mode="after")
    def _possible_steps(self) -> CalibrateOptions:
        _can_make(self.sampler, self.steps)
        return self

    @property
    def out_dir(self) -> Path:
        """Where the videos are: ``--out`` when given, else the usual place."""
        return self.out or super().run_dir

    @property
    def run_dir(self) -> Path:
        """Its own place inside the folder of results, which belongs to the user."""
        return self.out_dir / STATE_FOLDER / self.command

    @property
    def measures_yardstick(self) -> bool:
        """Whether to see how far the original's own steps are from convergence."""
        return self.model_path is None if self.yardstick is None else self.yardstick

    @property
    def calibration_note(self) -> Path:
        """Where it is noted for the searches which folder holds the calibration."""
        return self.workdir / CALIBRATION_NOTE


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
            return self.model_path is None or self.max_loss is not None
        return self.verify

    @property
    def calibration_dir(self) -> Path:
        """Where the calibration is: as `with_predecessors` found it, else the usual place."""
        return self.calibration or self.workdir / "calibration"


class SearchStepsOptions(SearchOptions):
    """Find the timesteps that make the same video in fewer steps."""

    command: ClassVar[str] = "search-steps"
    folder: ClassVar[str | None] = "search-steps"
    goal: ClassVar[str] = "steps"
    common: ClassVar[tuple[str, ...]] = (
        "steps",
        "max_loss",
        "verify",
        "budget",
        "prompt_file",
        "text_prompt",
        "calibration",
        "videos_path",
        "out",
        "workdir",
        "nproc_per_node",
    )
    example: ClassVar[str] = "--steps 50 --verify"

    steps: Numbers = option(
        (50,),
        "Length of the schedule; several, separated by commas, write one schedule each.",
        panel="Job",
        aliases=_STEPS_ALIASES,
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
        if self.all_steps and self.max_loss is not None:
            raise ValueError("--all-steps: samples nothing, which --max-loss needs; give one")
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
        return _file_at(self.out or self.run_dir, "searched_schedule.txt", ".txt", ".json")


class CacheMemoryOptions(Options):
    """Where a block cache keeps what it reuses: for models whose hidden states are large."""

    cache_dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Number format of the stored changes; auto: as computed.", panel="Device"
    )
    cache_offload: bool = option(False, "Keep the stored changes in host memory.", panel="Device")

    @field_validator("cache_dtype", mode="before")
    @classmethod
    def _long_cache_dtype(cls, value: Any) -> Any:
        return DTYPE_ALIASES.get(value, value) if isinstance(value, str) else value


class SearchCacheOptions(SearchOptions, CacheMemoryOptions):
    """Find which transformer blocks can be reused, and when."""

    command: ClassVar[str] = "search-cache"
    folder: ClassVar[str | None] = "search-cache"
    goal: ClassVar[str] = "ratio"
    common: ClassVar[tuple[str, ...]] = (
        "ratio",
        "max_loss",
        "policy",
        "steps",
        "schedule",
        "verify",
        "budget",
        "prompt_file",
        "calibration",
        "out",
        "workdir",
        "nproc_per_node",
    )
    example: ClassVar[str] = "--ratio 1.3 --verify"

    steps: int = option(
        100,
        "Sampling steps that the cache is for (with --schedule: what the file says).",
        panel="Job",
        aliases=_STEPS_ALIASES,
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
        _SCHEDULE + " The cache is then for these steps; default: what search-steps left.",
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
    def _possible_steps(self) -> SearchCacheOptions:
        if self.schedule is None:
            _can_make(self.sampler, self.steps)
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
        return _file_at(self.out or self.run_dir, "dit_cache_config.json", ".json")


class OptimizeOptions(SearchOptions, CacheMemoryOptions):
    """Find the recipe (steps, corrections, what is reused) of a wanted speed that loses least."""

    command: ClassVar[str] = "optimize"
    folder: ClassVar[str | None] = "optimize"
    goal: ClassVar[str] = "speedup"
    common: ClassVar[tuple[str, ...]] = (
        "speedup",
        "max_loss",
        "budget",
        "verify_prompts",
        "prompt_file",
        "text_prompt",
        "model_path",
        "calibration",
        "out",
        "workdir",
        "nproc_per_node",
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
        4,
        "Fresh prompts that judge the winner (about 1.5 generations each at 4x).",
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

    @property
    def recipe_path(self) -> Path:
        """Where the recipe is written."""
        return _file_at(self.out or self.run_dir, "recipe.json", ".json")

    @model_validator(mode="after")
    def _samples(self) -> Self:
        if self.verify is False:
            raise ValueError("--no-verify: only sampling compares recipes; leave it out")
        if self.sampler not in FOLLOW_TIMESTEPS:
            takes = ", ".join(FOLLOW_TIMESTEPS)
            raise ValueError(f"--sampler {self.sampler}: takes no recipe; use one of {takes}")
        return self


class SampleOptions(SamplingOptions, CacheMemoryOptions, LaunchOptions):
    """Make videos, with a searched schedule and a cache where wanted."""

    command: ClassVar[str] = "sample"
    folder: ClassVar[str | None] = "samples"
    common: ClassVar[tuple[str, ...]] = (
        "text_prompt",
        "prompt_file",
        "recipe",
        "plain",
        "schedule",
        "cache",
        "steps",
        "seed",
        "model_path",
        "out",
        "workdir",
        "nproc_per_node",
    )
    example: ClassVar[str] = "--prompt 'a red circle moves left on a white background'"

    steps: int = option(
        100,
        "Sampling steps (with --schedule: what the file says).",
        panel="Job",
        aliases=_STEPS_ALIASES,
        unit="steps",
        ge=1,
        le=MAX_STEPS,
    )
    schedule: Path | None = option(
        None, _SCHEDULE, panel="Job", aliases=("schedule_timestep",), metavar="FILE"
    )
    cache: Path | None = option(
        None, "Cache policy (JSON).", panel="Job", aliases=("dit_cache_config",), metavar="FILE"
    )
    recipe: Path | None = option(
        None,
        "Recipe of optimize: sampler, steps and cache in one file.",
        panel="Job",
        metavar="FILE",
    )
    plain: bool = option(
        False,
        "As the original model does: not with the schedule and the cache that the searches left in "
        "the working folder, which are used when nothing is said of steps or cache.",
        panel="Job",
    )
    allow_mismatch: bool = option(
        False, "Use what was searched for another model or setting.", panel="Job"
    )
    num_prompts: int | None = option(
        None,
        "Use only the first prompts; default: all that are given, 4 of the bundled ones.",
        panel="Prompts",
        unit="prompts",
        ge=1,
    )
    seeds_per_prompt: int = option(
        1, "Videos per prompt, with seeds SEED, SEED+1, ...", panel="Sampling", ge=1, le=10_000
    )
    out: Path | None = option(
        None,
        "Folder for the videos; default WORKDIR/samples.",
        panel="Job",
        short="o",
        aliases=("save_img_path",),
        metavar="DIR",
        identity=False,
    )

    raw: bool | None = option(
        None,
        "Keep lossless frames beside each mp4, for evaluate; default: for the bundled model.",
        panel="Job",
        identity=False,
    )

    @model_validator(mode="after")
    def _possible_steps(self) -> SampleOptions:
        if self.recipe is not None:
            for name in ("schedule", "cache", "steps"):
                if name in self.model_fields_set and getattr(self, name) is not None:
                    raise ValueError(f"--{name}: --recipe says it too; give one of them")
        elif self.schedule is None:
            _can_make(self.sampler, self.steps)
        return self

    @property
    def out_dir(self) -> Path:
        """Where the videos are: ``--out`` when given, else the usual place."""
        return self.out or super().run_dir

    @property
    def run_dir(self) -> Path:
        """Its own place inside the folder of results, which belongs to the user."""
        return self.out_dir / STATE_FOLDER / self.command


class DoctorOptions(ModelOptions, ShapeOptions, DeviceOptions):
    """Look at this machine, and at a checkpoint when one is given."""

    command: ClassVar[str] = "doctor"
    common: ClassVar[tuple[str, ...]] = (
        "model_path",
        "version",
        "ae_path",
        "text_encoder_name",
        "pipeline",
        "device",
        "num_frames",
        "height",
        "width",
    )
    example: ClassVar[str] = "--model-path NAME/REPO/29x480p"

    pipeline: str | None = option(
        None,
        "Another text-to-video pipeline of diffusers, as the library drives it: a local folder or "
        "a hub id. It is loaded.",
        panel="Model",
        metavar="PATH",
    )


def _file_at(place: Path, name: str, *suffixes: str) -> Path:
    """``place`` itself when it is named like a file, else ``name`` inside it."""
    return place if place.suffix in suffixes and not place.is_dir() else place / name


def calibration_file(place: Path) -> Path:
    """The statistics at `place`: the file itself, or the one in that folder."""
    return place if place.is_file() else place / CALIBRATION_FILE


def calibration_of(workdir: Path) -> Path | None:
    """The folder that `calibrate` noted in a working folder. Raises FileError for a bad note."""
    note = workdir / CALIBRATION_NOTE
    if not note.is_file():
        return None
    content = read_json(note, "note on the calibration")
    folder = content.get("folder") if isinstance(content, dict) else None
    if not isinstance(folder, str):
        raise FileError(f"{note}: names no folder; run osp-opt calibrate again")
    return Path(folder)
