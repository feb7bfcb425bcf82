"""Every option of every subcommand, declared once (no torch).

What commands share is in `groups`; each command's own are in the module of its name.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from types import MappingProxyType

from osp_opt.options.base import OPTIONS_FILE, STATE_FOLDER, Options, flag_of, option, option_extra
from osp_opt.options.calibrate import (
    CALIBRATED_PROMPTS,
    CALIBRATION_FILE,
    CALIBRATION_NOTE,
    CalibrateOptions,
    calibration_file,
    calibration_of,
)
from osp_opt.options.evidence import EvaluateOptions, ReportOptions
from osp_opt.options.export import MAX_BLOCKS, ExportOptions
from osp_opt.options.groups import (
    CacheMemoryOptions,
    DeviceOptions,
    LaunchOptions,
    ModelOptions,
    SamplingOptions,
    ShapeOptions,
)
from osp_opt.options.sample import DoctorOptions, SampleOptions
from osp_opt.options.searches import (
    OptimizeOptions,
    SearchCacheOptions,
    SearchOptions,
    SearchStepsOptions,
)

JobOptions = (
    CalibrateOptions | SearchStepsOptions | SearchCacheOptions | OptimizeOptions | SampleOptions
)
"""Options of the commands that run in worker processes."""

COMMANDS: Mapping[str, type[Options]] = MappingProxyType(
    {
        model.command: model
        for model in (
            CalibrateOptions,
            SearchStepsOptions,
            SearchCacheOptions,
            OptimizeOptions,
            SampleOptions,
            EvaluateOptions,
            ReportOptions,
            ExportOptions,
            DoctorOptions,
        )
    }
)
"""Every subcommand's options by its name, in the order of use."""

_CARRIED = (
    *("model_path", "version", "ae_path", "text_encoder_name", "cache_dir"),
    *("pipeline", "pipeline_args"),
    *("device", "compile", "save_memory", "offload", "nproc_per_node", "workdir"),
)
_SHAPE = ("num_frames", "height", "width")  # searches take it from the calibration
_CALL = (*_SHAPE, "guidance_scale", "negative_prompt", "max_sequence_length")  # of a pipeline
_SAME_VIDEOS = ("text_prompt", "prompt_file", "num_prompts", "seed", "seeds_per_prompt")


def following(options: Options, command: str, *arguments: str) -> str:
    """The command line of `command` after that of `options`: same model, place, and videos."""
    names = (*_CARRIED, *_SAME_VIDEOS) if command == options.command else _CARRIED
    if command in ("calibrate", "sample") and getattr(options, "model_path", None) is not None:
        names = (*names, *_SHAPE)
    if getattr(options, "pipeline", None) is not None:
        names = (*names, *_CALL)
    words = ["osp-opt", command, *arguments]
    for name in names:
        value = getattr(options, name, None)
        if name in options.model_fields_set & set(COMMANDS[command].model_fields) and value:
            values = value if isinstance(value, tuple) else () if value is True else (value,)
            words += [flag_of(name), *map(str, values)]
    return shlex.join(words)


__all__ = [
    "CALIBRATED_PROMPTS",
    "CALIBRATION_FILE",
    "CALIBRATION_NOTE",
    "COMMANDS",
    "MAX_BLOCKS",
    "OPTIONS_FILE",
    "STATE_FOLDER",
    "CacheMemoryOptions",
    "CalibrateOptions",
    "DeviceOptions",
    "DoctorOptions",
    "EvaluateOptions",
    "ExportOptions",
    "JobOptions",
    "LaunchOptions",
    "ModelOptions",
    "OptimizeOptions",
    "Options",
    "ReportOptions",
    "SampleOptions",
    "SamplingOptions",
    "SearchCacheOptions",
    "SearchOptions",
    "SearchStepsOptions",
    "ShapeOptions",
    "calibration_file",
    "calibration_of",
    "flag_of",
    "following",
    "option",
    "option_extra",
]
