"""The options of sample, and those of doctor."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import model_validator

from osp_opt.base.samplers import MAX_STEPS
from osp_opt.options.base import option
from osp_opt.options.groups import (
    SCHEDULE,
    STEPS_ALIASES,
    CacheMemoryOptions,
    DeviceOptions,
    LaunchOptions,
    MakingOptions,
    ModelOptions,
    ShapeOptions,
    check_follows,
    check_makes,
)


class SampleOptions(MakingOptions, CacheMemoryOptions, LaunchOptions):
    """Make videos, with a searched schedule, a cache, both or neither."""

    command: ClassVar[str] = "sample"
    folder: ClassVar[str | None] = "samples"
    common: ClassVar[tuple[str, ...]] = (
        *("text_prompt", "prompt_file", "recipe", "plain", "schedule", "cache", "steps"),
        *("seed", "model_path", "out", "workdir", "nproc_per_node"),
    )
    example: ClassVar[str] = "--prompt 'a red circle moves left on a white background'"

    steps: int = option(
        100,
        "Sampling steps (with --schedule: what the file says); with --pipeline 50.",
        panel="Job",
        aliases=STEPS_ALIASES,
        unit="steps",
        ge=1,
        le=MAX_STEPS,
    )
    schedule: Path | None = option(
        None, SCHEDULE, panel="Job", aliases=("schedule_timestep",), metavar="FILE"
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
            check_makes(self.sampler, self.steps)
        else:
            check_follows(self.sampler)
        return self


class DoctorOptions(ModelOptions, ShapeOptions, DeviceOptions):
    """Show what this machine offers and, with paths, what a checkpoint is."""

    command: ClassVar[str] = "doctor"
    common: ClassVar[tuple[str, ...]] = (
        *("model_path", "version", "ae_path", "text_encoder_name", "pipeline", "device"),
        *("num_frames", "height", "width"),
    )
    example: ClassVar[str] = "--model-path NAME/REPO/29x480p"
