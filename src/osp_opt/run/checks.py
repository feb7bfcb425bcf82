"""What can be known to be wrong before any process is started (no torch)."""

from __future__ import annotations

from pathlib import Path

from osp_opt.base.artifacts import read_json
from osp_opt.base.errors import CalibrationError, CheckpointError, FileError, ScheduleError
from osp_opt.cache.policy import CachePolicy
from osp_opt.generate.prompts import given_prompts
from osp_opt.options import (
    CALIBRATION_FILE,
    CalibrateOptions,
    JobOptions,
    ModelOptions,
    SampleOptions,
    SearchCacheOptions,
    SearchOptions,
    SearchStepsOptions,
    calibration_file,
)
from osp_opt.system.ranks import parse_layout

TRANSFORMER_CLASS = "OpenSoraT2V"
SCHEDULE_MAX_BYTES = 2**20


def check_before_launch(options: JobOptions) -> list[str]:
    """Look at everything that is cheap to look at; return notes for the user.

    Raises an InputError naming the option or file. What needs the model (does the policy fit its
    blocks, was the shape trained) is left to the worker.
    """
    _check_model(options)
    given_prompts(options)
    parse_layout(options.parallel, options.nproc_per_node * options.nnodes)
    _check_output(options)
    notes: list[str] = []
    if isinstance(options, (SampleOptions, SearchCacheOptions)) and options.schedule is not None:
        length = schedule_length(options.schedule)
        if "steps" in options.model_fields_set and options.steps != length:
            notes.append(
                f"--schedule {options.schedule} has {length} steps; "
                f"--steps {options.steps} is not used"
            )
    if isinstance(options, SampleOptions) and options.cache is not None:
        CachePolicy.from_file(options.cache)
    if isinstance(options, SearchOptions):
        _check_calibration(options)
    return notes


def with_predecessors(options: JobOptions) -> tuple[JobOptions, list[str]]:
    """The options with what earlier commands left in the working folder, and notes on it.

    Steps and cache are made to be used together, so search-cache is for the schedule that
    search-steps wrote, unless ``--schedule`` or ``--steps`` say what it is for.
    """
    if not isinstance(options, SearchCacheOptions):
        return options, []
    found = SearchStepsOptions(workdir=options.workdir).schedule_path
    if options.model_fields_set & {"schedule", "steps"} or not found.is_file():
        return options, []
    note = f"searching a cache for the steps of {found}; --steps N for N uniform ones"
    return options.model_copy(update={"schedule": found}), [note]


def schedule_length(path: Path) -> int:
    """Number of steps in a schedule file. Raises FileError or ScheduleError."""
    values = read_json(path, "schedule", max_bytes=SCHEDULE_MAX_BYTES)
    if not isinstance(values, list) or not values:
        raise ScheduleError(f"schedule {path}: must be a JSON list of timesteps / 1000")
    for index, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ScheduleError(f"schedule {path}: entry {index} is not a number")
    return len(values)


def _check_model(options: ModelOptions) -> None:
    for name in ("model_path", "ae_path", "text_encoder_name"):
        value = getattr(options, name)
        if value is not None and _is_local(value) and not Path(value).is_dir():
            flag = "--" + name.replace("_", "-")
            raise CheckpointError(f"{flag} {value}: no such folder; check the path")
    if options.model_path is None or not Path(options.model_path).is_dir():
        return
    folder = Path(options.model_path)
    if options.version is not None and (folder / options.version).is_dir():
        folder = folder / options.version
    config_file = folder / "config.json"
    if not config_file.is_file():
        return  # a folder of folders; the loader knows what to say
    config = read_json(config_file, "model config")
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found != TRANSFORMER_CLASS:
        raise CheckpointError(
            f"--model-path {folder}: config.json describes {found or 'no model class'}, "
            f"not {TRANSFORMER_CLASS}; give the transformer's folder"
        )


def _is_local(path: str) -> bool:
    """Whether a path can only be meant locally: a hub id is NAME/REPO or NAME/REPO/SUBFOLDER."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 2 or "/" not in path.rstrip("/")


def _check_output(options: JobOptions) -> None:
    if isinstance(options, (CalibrateOptions, SampleOptions)):
        if options.run_dir.exists() and not options.run_dir.is_dir():
            raise FileError(f"--out {options.run_dir}: is a file; give a folder")
        return
    out = options.out
    if out is not None and out.exists() and not (out.is_dir() or out.is_file()):
        raise FileError(f"--out {out}: is neither a file nor a folder")


def _check_calibration(options: SearchOptions) -> None:
    if isinstance(options, SearchStepsOptions) and options.videos_path is not None:
        if not options.videos_path.is_dir():
            raise CalibrationError(f"--videos-path {options.videos_path}: no such folder")
        return
    place = options.calibration_dir
    if not calibration_file(place).is_file():
        hint = "" if options.calibration is not None else ", in the same --workdir"
        raise CalibrationError(
            f"{place}: holds no {CALIBRATION_FILE}; run `osp-opt calibrate` first{hint}"
        )
