"""What a FILE is (schedule, cache policy, recipe, calibration), by its content, and reading it.

A kind of file that is to be exported, too, is added to `kind_of`, here. No torch but for schedules.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from osp_opt.base.artifacts import JSON_MAX_BYTES, read_bytes, read_json, read_meta, setting_of
from osp_opt.base.errors import FileError, PolicyError
from osp_opt.base.samplers import SAMPLER_KINDS
from osp_opt.cache.policy import CachePolicy
from osp_opt.export.mindie import parse_cache_config, read_mindie_sd
from osp_opt.options import CALIBRATION_FILE, calibration_file
from osp_opt.sampling.recipe import RECIPE_FORMAT, Recipe

if TYPE_CHECKING:
    from osp_opt.calibration import Calibration
    from osp_opt.sampling.schedule import TimestepSchedule

__all__ = [
    "Kind",
    "PolicyFile",
    "ScheduleFile",
    "kind_of",
    "read_calibration",
    "read_mindie_file",
    "read_policy",
    "read_schedule",
]

Kind = Literal["schedule", "cache policy", "recipe", "calibration"]


@dataclass(frozen=True)
class PolicyFile:
    """A policy and, where the file or its provenance says so, what it is for."""

    policy: CachePolicy
    num_blocks: int | None
    num_steps: int | None
    notes: tuple[str, ...] = ()
    calls_per_step: int = 1


@dataclass(frozen=True)
class ScheduleFile:
    """A schedule and, where the provenance says so, what it is for.

    sampler: of Open-Sora-Plan's. foreign: the scheduler of another pipeline, into whose own table,
    which is not recorded, the timesteps point. shift: by how much a flow-matching scheduler shifts.
    """

    schedule: TimestepSchedule
    sampler: str | None = None
    foreign: str | None = None
    shift: float | None = None


def kind_of(path: Path) -> Kind:
    """What the file or folder at `path` is. Raises FileError when it is none of the kinds."""
    if os.path.isdir(path):
        if not os.path.isfile(calibration_file(path)):
            raise FileError(f"{path}: a folder without a {CALIBRATION_FILE}; give a file")
        return "calibration"
    if path.suffix == ".safetensors":
        return "calibration"
    text = read_bytes(path, "file to export", JSON_MAX_BYTES)
    if b"CacheConfig(" in text:
        raise FileError(f"{path}: looks like a CacheConfig of MindIE-SD; add --from mindie-sd")
    content = read_json(path, "file to export")
    if isinstance(content, list):
        return "schedule"
    if not isinstance(content, dict):
        raise FileError(f"{path}: neither a schedule nor a cache policy nor a recipe")
    if "method" in content and "blocks_count" in content:
        raise FileError(f"{path}: looks like a CacheConfig of MindIE-SD; add --from mindie-sd")
    return "recipe" if content.get("format") == RECIPE_FORMAT else "cache policy"


def read_policy(path: Path) -> PolicyFile:
    """The cache policy in a file of osp-opt or of the reference tool, or in a recipe.

    Raises FileError, RecipeError, PolicyError (also for a recipe that caches nothing).
    """
    if kind_of(path) == "recipe":
        recipe = Recipe.from_file(path)
        if recipe.policy is None:
            raise PolicyError(
                f"{path}: this recipe caches nothing; its steps go --to diffusers or comfyui"
            )
        policy, steps = recipe.policy, len(recipe.timesteps)
    else:
        policy, steps = CachePolicy.from_file(path), None
    meta = read_meta(path) or {}
    told, times = setting_of(meta).get("steps"), meta.get("block_times_seconds")
    blocks = times.get("blocks") if isinstance(times, dict) else None
    return PolicyFile(
        policy,
        num_blocks=len(blocks) if isinstance(blocks, list) else None,
        num_steps=steps or len(policy.plan) or (told if isinstance(told, int) else None),
        calls_per_step=2 if meta.get("calls_per_step") == 2 else 1,
    )


def read_mindie_file(path: Path) -> PolicyFile:
    """A CacheConfig of MindIE-SD, as JSON or as a Python call. Raises FileError, PolicyError."""
    text = read_bytes(path, "CacheConfig", JSON_MAX_BYTES).decode(errors="replace")
    arguments: Any
    try:
        if text.lstrip().startswith(("{", "[")):
            arguments = read_json(path, "CacheConfig")
        else:
            arguments = parse_cache_config(text)
        if not isinstance(arguments, dict):
            raise PolicyError("a CacheConfig is an object with method, blocks_count, ...")
        cache = read_mindie_sd(arguments)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None
    return PolicyFile(cache.policy, cache.num_blocks, cache.num_steps, cache.notes)


def read_schedule(path: Path) -> ScheduleFile:
    """The schedule in a file or in a recipe. Raises FileError, ScheduleError, RecipeError."""
    from osp_opt.sampling.noise_scale import FLOW
    from osp_opt.sampling.schedule import TimestepSchedule

    setting = setting_of(read_meta(path))
    sampler, shift = setting.get("sampler"), setting.get("shift")
    if kind_of(path) == "recipe":
        recipe = Recipe.from_file(path)
        schedule, sampler = TimestepSchedule.from_recipe(recipe), recipe.sampler
    else:
        schedule = TimestepSchedule.from_file(path)
    others = "arguments" in setting and schedule.scale != FLOW  # those of a pipeline's call
    return ScheduleFile(
        schedule,
        sampler=sampler if not others and sampler in SAMPLER_KINDS else None,
        foreign=str(sampler) if others else None,
        shift=float(shift) if isinstance(shift, (int, float)) and shift > 0 else None,
    )


def read_calibration(path: Path) -> Calibration:
    """The statistics of a calibration folder or file. Raises FileError, CalibrationError."""
    from osp_opt.calibration import Calibration

    return Calibration.load(calibration_file(path))
