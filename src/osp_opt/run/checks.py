"""What can be known to be wrong before any process is started (no torch)."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import check_place, read_json
from osp_opt.base.errors import (
    CalibrationError,
    CheckpointError,
    DeviceError,
    FileError,
    OptionError,
    PolicyError,
    ScheduleError,
)
from osp_opt.base.ffmpeg import check_ffmpeg
from osp_opt.base.samplers import SAMPLER_KINDS
from osp_opt.base.shape import VideoShape, trained_shape
from osp_opt.cache.policy import CachePolicy
from osp_opt.generate.prompts import given_prompts, listed_prompts
from osp_opt.model.folders import local_transformer
from osp_opt.options import (
    CALIBRATED_PROMPTS,
    CALIBRATION_FILE,
    CalibrateOptions,
    JobOptions,
    ModelOptions,
    SampleOptions,
    SearchCacheOptions,
    SearchOptions,
    SearchStepsOptions,
    calibration_file,
    calibration_of,
    flag_of,
)
from osp_opt.pipelines.calibrated import check_files
from osp_opt.pipelines.files import check_levels, check_pipeline
from osp_opt.sampling.levels import FLOW_MAX, read_fractions
from osp_opt.sampling.recipe import recipe_of
from osp_opt.system.host import impossible_device
from osp_opt.system.ranks import parse_layout
from osp_opt.tiny.captions import parse
from osp_opt.tiny.prompts import BUNDLED

TRANSFORMER_CLASS = "OpenSoraT2V"
_READ_AT_ONCE = (
    2**26
)  # bytes of a calibration; of a larger one the search itself says what is wrong


def check_before_launch(options: JobOptions) -> list[str]:
    """Look at everything that is cheap to look at; return notes for the user.

    Raises an InputError naming the option or file. What only the loaded model tells is left to the
    worker.
    """
    notes, config = _check_model(options)
    problem = impossible_device(options.device)
    if problem is not None:
        raise DeviceError(f"--device {options.device}: {problem}; or use --device cpu")
    listed = listed_prompts(options) or []
    if len(set(listed)) < len(listed):
        twice = len(listed) - len(set(listed))
        notes.append(f"{twice} of {len(listed)} prompts are there already; each is made once")
    notes += _unknown_to_the_bundled_model(options, listed)
    layout = parse_layout(options.parallel, options.nproc_per_node * options.nnodes)
    if options.pipeline is not None and layout is not None and layout.replica_size > 1:
        raise OptionError(
            f"--parallel {options.parallel}: a pipeline makes each video on one process; use "
            f"dp={layout.world_size}"
        )
    _check_output(options)
    check_ffmpeg()
    steps = options.steps if isinstance(options, SampleOptions) else 0
    if isinstance(options, (SampleOptions, SearchCacheOptions)) and options.schedule is not None:
        steps = _check_schedule(options, options.schedule)
        if "steps" in options.model_fields_set and options.steps != steps:
            notes.append(
                f"--schedule {options.schedule} has {steps} steps; "
                f"--steps {options.steps} is not used"
            )
    if isinstance(options, SampleOptions) and options.cache is not None:
        _check_policy(options, config, steps)
    if isinstance(options, SampleOptions) and options.recipe is not None:
        recipe = recipe_of(options)
        if options.pipeline is not None and recipe is not None:
            _check_levels(options, options.recipe, recipe.timesteps)
    if isinstance(options, SearchOptions):
        notes += _check_calibration(options)
    return notes


def with_predecessors(options: JobOptions) -> tuple[JobOptions, list[str]]:
    """The options with what earlier commands left in the working folder, and notes on it.

    Both searches use the calibration of the last `calibrate`, wherever ``--out`` put it. Steps and
    cache are made to be used together, so search-cache is for the schedule that search-steps
    wrote, unless ``--schedule`` or ``--steps`` say what it is for.
    """
    if not isinstance(options, SearchOptions):
        return options, []
    taken: dict[str, Any] = {}
    notes = []
    calibrated = _noted_calibration(options)
    if calibrated is not None:
        taken["calibration"] = calibrated
        notes.append(f"using the calibration in {calibrated}")
    if isinstance(options, SearchCacheOptions):
        found = SearchStepsOptions(workdir=options.workdir).schedule_path
        if not options.model_fields_set & {"schedule", "steps"} and found.is_file():
            taken["schedule"] = found
            plain = "uniform ones" if options.pipeline is None else "of the scheduler's own"
            notes.append(f"a cache for the steps of {found}; --steps N for N {plain}")
    return options.model_copy(update=taken), notes


def _noted_calibration(options: SearchOptions) -> Path | None:
    """The folder in which `calibrate --out` left the calibration; None: the usual place."""
    videos = isinstance(options, SearchStepsOptions) and options.videos_path is not None
    if videos or options.calibration is not None:
        return None
    place = calibration_of(options.workdir)
    usual = options.calibration_dir
    if place is None or place == usual.resolve() or not calibration_file(place).is_file():
        return None
    return place


def calibration_to_make(options: JobOptions | SearchOptions) -> CalibrateOptions | None:
    """What a search has to calibrate first, because nobody did."""
    if not isinstance(options, SearchOptions) or options.calibration is not None:
        return None
    if isinstance(options, SearchStepsOptions) and options.videos_path is not None:
        return None
    if calibration_file(options.calibration_dir).is_file():
        return None
    return options.calibrate_options(CALIBRATED_PROMPTS)


def _check_schedule(options: ModelOptions, path: Path) -> int:
    """The number of its steps. Raises FileError or ScheduleError."""
    if options.pipeline is None:
        return len(read_fractions(path))
    levels = read_fractions(path, FLOW_MAX)
    _check_levels(options, path, [1000.0 * s for s in reversed(levels)])
    return len(levels)


def _check_policy(options: SampleOptions, config: Mapping[str, Any], steps: int) -> None:
    """Whether the model has the blocks, and the video the steps, that --cache names."""
    assert options.cache is not None
    policy, blocks = CachePolicy.from_file(options.cache), config.get("num_layers")
    kind = SAMPLER_KINDS[options.sampler]
    if isinstance(blocks, int) and kind.order == 1 and kind.timesteps:  # others evaluate more often
        try:
            policy.validate(blocks, steps)
        except PolicyError as error:
            raise PolicyError(f"{options.cache}: {error}") from error


def _check_levels(options: ModelOptions, path: Path, timesteps: Sequence[float]) -> None:
    try:
        check_levels(options, timesteps)
    except ScheduleError as error:
        raise ScheduleError(f"{path}: {error}") from error


def _check_model(options: JobOptions) -> tuple[list[str], Mapping[str, Any]]:
    """Notes, and the transformer's config, empty where it is not known here."""
    if options.pipeline is not None:
        check_pipeline(options)
    for name in ("model_path", "ae_path", "text_encoder_name"):
        value = getattr(options, name)
        if value is not None and _is_local(value) and not Path(value).expanduser().is_dir():
            raise CheckpointError(f"{flag_of(name)} {value}: no such folder; check the path")
    if options.cache_dir is not None:
        check_place(options.cache_dir, "--cache-dir")
        if options.cache_dir.exists() and not options.cache_dir.is_dir():
            raise FileError(f"--cache-dir {options.cache_dir}: is a file; give a folder")
    notes: list[str] = []
    folder = BUNDLED / "transformer"
    if options.model_path is not None:
        place = Path(options.model_path).expanduser()
        if not place.is_dir():
            return [], {}  # of the hub
        folder = local_transformer(place, options.version)
        if options.version is not None and not (place / options.version).is_dir():
            text = f"no such folder in {place}, which is used itself"
            notes.append(f"--version {options.version}: {text}")
    elif not options.is_bundled or not (folder / "config.json").is_file():
        return [], {}
    config = read_json(folder / "config.json", "model config")
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found != TRANSFORMER_CLASS:
        raise CheckpointError(
            f"--model-path {folder}: config.json describes {found or 'no model class'}, "
            f"not {TRANSFORMER_CLASS}; give the transformer's folder, or, of a diffusers pipeline, "
            "the whole by --pipeline"
        )
    _check_shape(options, config)
    return notes, config


def _check_shape(options: JobOptions, config: Mapping[str, Any]) -> None:
    """Whether the size that was asked for, if any was, is one that the model was trained for."""
    asked = (options.num_frames, options.height, options.width)
    if any(asked) and {"sample_size", "sample_size_t"} <= config.keys():
        own = astuple(trained_shape(config))
        shape = VideoShape(*(value or known for value, known in zip(asked, own, strict=True)))
        shape.check_trained(config, options.allow_untrained_shape)


def _unknown_to_the_bundled_model(options: ModelOptions, prompts: Sequence[str]) -> list[str]:
    unknown = [prompt for prompt in prompts if parse(prompt) is None]
    if not options.is_bundled or not unknown:
        return []
    more = f" and {len(unknown) - 1} more prompts" if len(unknown) > 1 else ""
    return [
        f"the bundled model knows nothing of {textwrap.shorten(unknown[0], 60)!r}{more} and will "
        "draw stains; it was trained on captions such as 'a red circle moves left on a white "
        "background' (--model-path names a model that knows more)"
    ]


def _is_local(path: str) -> bool:
    """Whether a path can only be meant locally: a hub id is NAME/REPO or NAME/REPO/SUBFOLDER."""
    return path.startswith(("/", ".", "~")) or path.count("/") > 2 or "/" not in path.rstrip("/")


def _check_output(options: JobOptions) -> None:
    if options.out is not None:
        check_place(options.out, "--out")
    if options.out is None or not isinstance(options, SampleOptions):
        check_place(options.workdir, "--workdir")
    if isinstance(options, (CalibrateOptions, SampleOptions)):
        if options.out_dir.exists() and not options.out_dir.is_dir():
            raise FileError(f"--out {options.out_dir}: is a file; give a folder")
        return
    out = options.out
    if out is not None and out.exists() and not (out.is_dir() or out.is_file()):
        raise FileError(f"--out {out}: is neither a file nor a folder")


def _check_calibration(options: SearchOptions) -> list[str]:
    """Notes on what will be done first. Raises CalibrationError."""
    if isinstance(options, SearchStepsOptions) and options.videos_path is not None:
        folder = options.videos_path
        if not folder.is_dir():
            raise CalibrationError(f"--videos-path {folder}: no such folder")
        if not calibration_file(folder).is_file():
            from osp_opt.calibration.listing import described_videos  # imports numpy

            described_videos(options, folder)
        return []
    if options.calibration is not None and not calibration_file(options.calibration).is_file():
        raise CalibrationError(
            f"--calibration {options.calibration}: holds no {CALIBRATION_FILE}; "
            "run `osp-opt calibrate` first, or leave it out"
        )
    missing = calibration_to_make(options)
    if missing is None:
        found = calibration_file(options.calibration_dir)
        check_files(found, options)
        if found.stat().st_size <= _READ_AT_ONCE:
            from osp_opt.calibration import Calibration  # imports numpy

            Calibration.load(found)
        return []
    prompts = given_prompts(missing)
    count = min(missing.num_prompts or 1, len(prompts) if prompts else CALIBRATED_PROMPTS)
    return [
        f"no calibration in {missing.out_dir}: sampling {count} videos of {missing.steps} steps "
        "with the original model first, as `osp-opt calibrate` does; they are kept there"
    ]
