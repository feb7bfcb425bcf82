"""Every option of every subcommand, declared once (no torch).

Groups are in :mod:`osp_opt.options.groups`, subcommands in :mod:`osp_opt.options.commands`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from osp_opt.options.base import OPTIONS_FILE, STATE_FOLDER, Options, option, option_extra
from osp_opt.options.commands import (
    CALIBRATED_PROMPTS,
    CALIBRATION_FILE,
    CALIBRATION_NOTE,
    CacheMemoryOptions,
    CalibrateOptions,
    DoctorOptions,
    SampleOptions,
    SearchCacheOptions,
    SearchOptions,
    SearchStepsOptions,
    calibration_file,
)
from osp_opt.options.evidence import EvaluateOptions, ReportOptions
from osp_opt.options.export import ExportOptions
from osp_opt.options.groups import (
    DeviceOptions,
    LaunchOptions,
    ModelOptions,
    SamplingOptions,
    ShapeOptions,
)

JobOptions = CalibrateOptions | SearchStepsOptions | SearchCacheOptions | SampleOptions
"""Options of the commands that run in worker processes."""

COMMANDS: Mapping[str, type[Options]] = MappingProxyType(
    {
        model.command: model
        for model in (
            CalibrateOptions,
            SearchStepsOptions,
            SearchCacheOptions,
            SampleOptions,
            EvaluateOptions,
            ReportOptions,
            ExportOptions,
            DoctorOptions,
        )
    }
)
"""Every subcommand's options by its name, in the order of use."""

__all__ = [
    "CALIBRATED_PROMPTS",
    "CALIBRATION_FILE",
    "CALIBRATION_NOTE",
    "COMMANDS",
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
    "Options",
    "ReportOptions",
    "SampleOptions",
    "SamplingOptions",
    "SearchCacheOptions",
    "SearchOptions",
    "SearchStepsOptions",
    "ShapeOptions",
    "calibration_file",
    "option",
    "option_extra",
]
