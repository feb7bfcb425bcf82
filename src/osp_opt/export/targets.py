"""Every runtime that can be exported to: what it takes, and how its words are made."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from osp_opt.base.errors import CalibrationError, OptionError, PolicyError
from osp_opt.base.samplers import MAX_STEPS
from osp_opt.export import cache_dit, mindie
from osp_opt.export.artifact import (
    Kind,
    PolicyFile,
    ScheduleFile,
    kind_of,
    read_calibration,
    read_mindie_file,
    read_policy,
    read_schedule,
)
from osp_opt.export.nearest import check_reuses
from osp_opt.options import MAX_BLOCKS, ExportOptions, flag_of

if TYPE_CHECKING:
    from osp_opt.sampling.schedule import TimestepSchedule

__all__ = ["TARGETS", "Exported", "export"]

_NUMBERS = ("steps", "num_blocks")
_OF_SOME = {*_NUMBERS, "calls_per_step", "shift"}  # options that not every target has a use for


@dataclass(frozen=True)
class Exported:
    """The same content in each form that can be written, by the suffix of its file.

    The first one is what the terminal shows; bytes are for files only. `notes` are lines for the
    user.
    """

    forms: Mapping[str, str | bytes]
    notes: Sequence[str] = ()


def export(path: Path, options: ExportOptions) -> Exported:
    """`path` for the runtime that `options` name.

    Raises OptionError when that takes another kind of file or lacks a number, PolicyError when it
    would misread the policy, FileError and its like when the file is not what it should be.
    """
    foreign = options.from_format is not None
    name = options.to or ("osp-opt" if foreign else None)
    if name is None:
        raise OptionError(f"--to is missing; choose one of {', '.join(TARGETS)}")
    target = TARGETS[name]
    found = "cache policy" if foreign else kind_of(path)
    if found not in target.accepts:
        others = ", ".join(other for other, each in TARGETS.items() if found in each.accepts)
        raise OptionError(
            f"{path} is a {found}, and --to {name} takes a {target.takes}; "
            f"a {found} goes to {others}"
        )
    for unused in sorted(options.model_fields_set & _OF_SOME - set(target.options)):
        raise OptionError(f"{flag_of(unused)}: --to {name} has no use for it; leave it out")
    try:
        return target.make(path, options)
    except CalibrationError as error:
        text = str(error)
        raise CalibrationError(text if str(path) in text else f"{path}: {text}") from None


def _policy(path: Path, options: ExportOptions) -> tuple[PolicyFile, int, int]:
    """The policy with the numbers of blocks and steps that it is exported for."""
    file = read_mindie_file(path) if options.from_format else read_policy(path)
    blocks, steps = options.num_blocks or file.num_blocks, options.steps or file.num_steps
    if file.num_blocks is not None and blocks != file.num_blocks:
        raise OptionError(
            f"--num-blocks {blocks}: {path} is for a model of {file.num_blocks} blocks, and for "
            "another model nothing is known of it; leave it out"
        )
    for flag, number in (("--num-blocks", blocks), ("--steps", steps)):
        if number is None:
            raise OptionError(f"{path} does not say for how many it is: give {flag}")
    assert blocks is not None
    assert steps is not None
    if not (1 <= blocks <= MAX_BLOCKS and 2 <= steps <= MAX_STEPS):
        raise PolicyError(
            f"{path}: for {blocks} blocks in {steps} steps; at most {MAX_BLOCKS} blocks in "
            f"{MAX_STEPS} steps are exported"
        )
    try:
        file.policy.validate(blocks, steps)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None
    return file, blocks, steps


def _of_policy(
    make: Callable[[PolicyFile, int, int, ExportOptions], Exported],
) -> Callable[[Path, ExportOptions], Exported]:
    """A target that takes a policy: read, check the numbers, and name the file in a refusal."""

    def export_policy(path: Path, options: ExportOptions) -> Exported:
        file, blocks, steps = _policy(path, options)
        try:
            check_reuses(file.policy, steps)
            made = make(file, blocks, steps, options)
        except PolicyError as error:
            raise PolicyError(f"{path}: {error}") from None
        notes = list(file.notes)
        if file.num_steps is not None and file.num_steps != steps:
            notes.append(f"searched for {file.num_steps} steps, exported for {steps}")
        return Exported(made.forms, (*notes, *made.notes))

    return export_policy


def _osp_opt(file: PolicyFile, blocks: int, steps: int, options: ExportOptions) -> Exported:
    return Exported(
        {".json": _json(file.policy.to_json())},
        (f"{file.policy}, of {blocks} blocks in {steps} steps", *file.policy.warnings()),
    )


def _mindie_sd(file: PolicyFile, blocks: int, steps: int, options: ExportOptions) -> Exported:
    arguments = mindie.mindie_sd_arguments(file.policy, blocks, steps)
    words = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return Exported(
        {".py": f"CacheConfig({words})\n", ".json": _json(arguments)},
        ("one CacheAgent per guidance branch where the transformer runs twice a step",),
    )


def _mindie_policy(file: PolicyFile, blocks: int, steps: int, options: ExportOptions) -> Exported:
    table = mindie.mindie_policy_table(file.policy, blocks, steps)
    return Exported(
        {".pt": mindie.mindie_policy_file(table)},
        (f"boolean tensor {list(table.shape)}: row t - 1, block b is True where step t reuses b",),
    )


def _cache_dit(file: PolicyFile, blocks: int, steps: int, options: ExportOptions) -> Exported:
    config = cache_dit.cache_dit_config(
        file.policy,
        blocks,
        steps,
        calls_per_step=options.calls_per_step or file.calls_per_step,
    )
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=100)
    return Exported({".yaml": text, ".yml": text, ".json": _json(config)})


def _sglang(file: PolicyFile, blocks: int, steps: int, options: ExportOptions) -> Exported:
    values = cache_dit.sglang_environment(file.policy, blocks, steps)
    lines = "".join(f"export {name}={value}\n" for name, value in values.items())
    return Exported({".sh": lines, ".json": _json(values)})


def _schedule(path: Path, options: ExportOptions) -> ScheduleFile:
    """The schedule. Raises OptionError for --shift where no flow-matching scheduler is."""
    file = read_schedule(path)
    known = file.sampler or file.foreign
    if options.shift is not None and known is not None:
        raise OptionError(
            f"--shift: {path} was searched for {known}, which is not of flow matching and shifts "
            "nothing; leave it out"
        )
    return file


def _diffusers(path: Path, options: ExportOptions) -> Exported:
    from osp_opt.export.timesteps import diffusers_sigmas, diffusers_timesteps
    from osp_opt.sampling.noise_scale import FLOW

    file = _schedule(path, options)
    schedule, shift = file.schedule, options.shift or file.shift
    if shift is None and schedule.scale == FLOW:
        raise OptionError(
            f"{path}: its scheduler shifts levels by the size of the video; give --shift (1: none) "
            "or sample with osp-opt"
        )
    values: dict[str, Any] = {}
    if file.foreign is not None:
        values["timesteps"] = diffusers_timesteps(schedule, whole=True)
        note = f"of {file.foreign}; where it takes none of one's own, osp-opt follows them"
    elif shift is not None:
        values["sigmas"] = diffusers_sigmas(schedule, shift)
        note = (
            f"un-shifted, for a flow-matching scheduler with shift={shift:g}; a pipeline whose "
            "call takes no sigmas (Wan) follows them in osp-opt"
        )
    else:
        values["timesteps"] = diffusers_timesteps(schedule, file.sampler)
        values["sigmas"] = diffusers_sigmas(schedule)
        note = "a pipeline takes one of the two"
        if file.sampler is None:
            note += "; a flow-matching model needs --shift"
    text = "".join(f"{name}={value!r}\n" for name, value in values.items())
    return Exported({".py": text, ".json": _json(values)}, [note, *_lost(schedule)])


def _comfyui(path: Path, options: ExportOptions) -> Exported:
    from osp_opt.export.timesteps import comfyui_sigmas
    from osp_opt.sampling.noise_scale import FLOW

    file = _schedule(path, options)
    schedule = file.schedule
    if file.foreign is not None:
        raise OptionError(
            f"{path}: its timesteps are those of {file.foreign}, whose noise levels the file does "
            "not hold; --to diffusers gives the timesteps"
        )
    flow = options.shift is not None or schedule.scale == FLOW
    sigmas = comfyui_sigmas(schedule, flow=flow)
    notes = _lost(schedule)
    if not flow and file.sampler is None:
        notes.insert(0, "a flow-matching model needs --shift (of any size: ComfyUI applies none)")
    # Of "5e-05" its ManualSigmas node would read 5 and -5: it knows no exponents.
    text = ", ".join(format(Decimal(repr(sigma)), "f") for sigma in sigmas)
    return Exported({".txt": text + "\n", ".json": _json(sigmas)}, notes)


def _magcache(path: Path, options: ExportOptions) -> Exported:
    from osp_opt.calibration.constants import GOOD_FIT, magcache_ratios

    calibration = read_calibration(path)
    steps = options.steps or len(calibration.timesteps)
    found = magcache_ratios(calibration, steps)
    values: dict[str, Any] = {"num_inference_steps": steps, "mag_ratios": list(found.mean)}
    words = ", ".join(f"{name}={value!r}" for name, value in values.items())
    if len(found.branches) == 2:
        values |= dict(zip(("negative", "positive"), map(list, found.branches), strict=True))
        values["positive_negative_in_turn"] = found.interleaved()
    values["fit"] = {"prompts": len(calibration.prompts), "explained": found.explained}
    if found.explained is None or found.typical_error is None:
        notes = ["recorded on one prompt: nothing says whether the ratios hold for others"]
    else:
        notes = [
            f"ratios of {len(calibration.prompts)} prompts; on a prompt left out they explain "
            f"{found.explained:.0%} of the change of length, and err by {found.typical_error:.2%}"
        ]
        if found.explained < GOOD_FIT:
            notes.append(
                "warning: a poor fit, the ratios depend on the prompt: MagCache will skip the "
                "wrong steps on some"
            )
    return Exported({".py": f"MagCacheConfig({words})\n", ".json": _json(values)}, notes)


def _teacache(path: Path, options: ExportOptions) -> Exported:
    from osp_opt.calibration.constants import GOOD_FIT, teacache_coefficients

    calibration = read_calibration(path)
    steps = options.steps or len(calibration.timesteps)
    found = teacache_coefficients(calibration, steps)
    low, high = found.input_range
    fit = {
        "prompts": len(calibration.prompts),
        "explained": found.explained,
        "on_prompts_left_out": found.left_out,
        "input_range": [low, high],
    }
    values = {
        "coefficients": list(found.coefficients),
        "num_inference_steps": steps,
        "fit": fit,
    }
    where = "prompts left out" if found.left_out else "the one prompt that it was fitted to"
    notes = [
        f"R2 {found.explained:.3f} on {where}, for changes of the input of {low:.3g} to {high:.3g}"
    ]
    if found.explained < GOOD_FIT or found.lowest < 0:
        reason = (
            "falls below 0" if found.lowest < 0 else "says little about the change of the output"
        )
        notes.append(
            f"warning: a poor fit, the polynomial {reason}: TeaCache will skip the wrong steps"
        )
    text = f"coefficients = {values['coefficients']!r}  # {steps} steps, R2 {found.explained:.3f}\n"
    return Exported({".py": text, ".json": _json(values)}, notes)


def _lost(schedule: TimestepSchedule) -> list[str]:
    """What is said of a schedule that no list of levels holds all of."""
    if not schedule.corrections:
        return []
    return [
        "the corrections of the recipe's steps are not exported; plain steps at the same levels "
        "make other videos than were measured"
    ]


def _json(value: Any) -> str:
    return json.dumps(value, indent=4, allow_nan=False) + "\n"


@dataclass(frozen=True)
class Target:
    """A runtime: the kind of file that it takes, what makes its words, and options for it alone."""

    takes: Kind
    make: Callable[[Path, ExportOptions], Exported]
    options: tuple[str, ...] = ()

    @property
    def accepts(self) -> tuple[Kind, ...]:
        """Its own kind, and a recipe where that holds one."""
        return (self.takes,) if self.takes == "calibration" else (self.takes, "recipe")


TARGETS: Mapping[str, Target] = MappingProxyType(
    {
        "osp-opt": Target("cache policy", _of_policy(_osp_opt), _NUMBERS),
        "mindie-sd": Target("cache policy", _of_policy(_mindie_sd), _NUMBERS),
        "mindie-policy": Target("cache policy", _of_policy(_mindie_policy), _NUMBERS),
        "cache-dit": Target("cache policy", _of_policy(_cache_dit), (*_NUMBERS, "calls_per_step")),
        "sglang": Target("cache policy", _of_policy(_sglang), _NUMBERS),
        "diffusers": Target("schedule", _diffusers, ("shift",)),
        "comfyui": Target("schedule", _comfyui, ("shift",)),
        "magcache": Target("calibration", _magcache, ("steps",)),
        "teacache": Target("calibration", _teacache, ("steps",)),
    }
)
"""By the name of `--to`."""
