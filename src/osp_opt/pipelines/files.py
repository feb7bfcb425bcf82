"""What a pipeline's folder says before it is loaded, so that what is wrong is said at once.

No torch, and diffusers is not imported: what the call of a pipeline takes is read off the source
of its class.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import HUB_ID, read_json
from osp_opt.base.errors import (
    CheckpointError,
    FileError,
    OptionError,
    ScheduleError,
    file_errors_as,
)
from osp_opt.base.mappings import read_mapping
from osp_opt.options import (
    CalibrateOptions,
    DoctorOptions,
    ModelOptions,
    SampleOptions,
    SamplingOptions,
    flag_of,
)
from osp_opt.pipelines.requirements import (
    Described,
    check_arguments,
    check_kind,
    check_offload,
    check_recorded,
    check_scheduler,
    draws_noise,
    is_flow,
)
from osp_opt.sampling.levels import check_timesteps
from osp_opt.system.host import impossible_device

__all__ = ["call_arguments", "check_levels", "check_pipeline", "described", "needs_no_noise"]

INDEX = "model_index.json"
_AS_OPTIONS = (
    *("num_frames", "height", "width", "guidance_scale", "negative_prompt"),
    "max_sequence_length",
)
"""Call arguments that options of ours stand for."""
_SIZES = ("num_frames", "height", "width", "max_sequence_length")
_WEIGHTS = (".safetensors", ".bin")


def call_arguments(options: ModelOptions, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What goes into every call of the pipeline: the file of --pipeline-args (of a pipeline that
    was loaded elsewhere, what was `given` with it), and what options say.

    Raises FileError for a bad file, OptionError for what both say or no JSON file could hold.
    """
    path = options.pipeline_args
    found = dict(given or {}) if path is None else read_mapping(path, "call arguments")
    source = "call arguments" if path is None else f"call arguments {path}"
    wrong = OptionError if path is None else FileError
    for name, value in found.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise wrong(
                f"{source}: {name} is {value!r:.40}, which no JSON file could hold"
            ) from error
        wanted = _wanted(name, value)
        if wanted is not None:
            raise wrong(f"{source}: {name} is {value!r:.40}; give {wanted}")
    for name in _AS_OPTIONS:
        said = getattr(options, name, None)
        if said is None:
            continue
        if name in found:
            raise OptionError(
                f"{flag_of(name)}: it stands in the {source} too; give it in one place"
            )
        found[name] = said
    return found


def _wanted(name: str, value: Any) -> str | None:
    """What an argument of every pipeline has to be, where it is not."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is None:
        return None
    if name in _SIZES and not (number and isinstance(value, int) and value >= 1):
        return "a whole number of at least 1"
    if name == "guidance_scale" and not number:
        return "a number"
    return "text" if name == "negative_prompt" and not isinstance(value, str) else None


def check_pipeline(options: ModelOptions) -> None:
    """Look at everything that files say of the pipeline that `options` name.

    Raises CheckpointError, ScheduleError or OptionError with what is wrong; what only the loaded
    pipeline knows is left to whoever loads it.
    """
    assert options.pipeline is not None
    if isinstance(options, CalibrateOptions):
        check_recorded(options.steps)
    if isinstance(options, SamplingOptions) and options.offload:
        anything = any(impossible_device(name) is None for name in ("npu", "cuda"))
        check_offload(options.device if options.device != "auto" or anything else "cpu")
    arguments = call_arguments(options)
    folder = Path(options.pipeline).expanduser()
    if not folder.is_dir():
        if HUB_ID.fullmatch(options.pipeline) and not options.pipeline.startswith("."):
            return
        raise CheckpointError(
            f"--pipeline {options.pipeline}: no such folder, and not a hub id (owner/name)"
        )
    found = described(folder)
    if found is not None:
        check_kind(found)
        check_arguments(found, arguments)
    name, config = _scheduler(folder)
    if name is None:
        return
    check_scheduler([name], config)
    if not isinstance(options, (SampleOptions, DoctorOptions)):
        needs_no_noise([name], config)


def check_levels(options: ModelOptions, timesteps: Sequence[float]) -> None:
    """Raise ScheduleError for timesteps that the scheduler of the pipeline that `options` name
    cannot follow, as far as its files tell.
    """
    assert options.pipeline is not None
    name, config = _scheduler(Path(options.pipeline).expanduser())
    if name is not None:
        check_timesteps(timesteps, flow=is_flow([name], config))


def needs_no_noise(names: list[str], config: Mapping[str, Any]) -> None:
    """Raise ScheduleError for a scheduler whose steps cannot be compared with others'."""
    if draws_noise(names, config):
        raise ScheduleError(
            f"{names[0]} draws fresh noise at every step, so that runs of different lengths are "
            "different videos; use a deterministic scheduler"
        )


def described(folder: Path) -> Described | None:
    """The pipeline in a folder; None where its class has no call of its own.

    Raises CheckpointError for a folder that holds none, or one that is not of diffusers.
    """
    if not (folder / INDEX).is_file():
        raise CheckpointError(f"{folder}: holds no {INDEX}; give a diffusers pipeline")
    with file_errors_as(CheckpointError):
        index = read_json(folder / INDEX, "pipeline's index")
    name = index.get("_class_name") if isinstance(index, dict) else None
    if isinstance(name, list) and len(name) == 2:  # [module, class]: code that lies beside it
        raise CheckpointError(
            f"{folder / INDEX}: {name[1]} is custom code ({name[0]}), which is not run; give a "
            "pipeline of diffusers"
        )
    if not isinstance(name, str) or not name.isidentifier():
        raise CheckpointError(f"{folder / INDEX}: names no pipeline class (_class_name)")
    source = _source_of(name)
    if source is None:
        raise CheckpointError(f"{folder / INDEX}: diffusers here has no pipeline {name}")
    parameters = _call_of(source)
    if parameters is None:
        return None
    listed = {key: value for key, value in index.items() if _is_part(value)}
    config = {key: value for key, value in index.items() if key not in listed}
    parts = {key: _is_there(folder / key, value[1]) for key, value in listed.items()}
    return Described(name, parameters, parts, _optional(source), config)


def _is_part(value: Any) -> bool:
    """Whether an entry of the index is a component: [library, class], or [null, null]."""
    texts = isinstance(value, list) and len(value) == 2
    return texts and all(part is None or isinstance(part, str) for part in value)


def _is_there(folder: Path, name: str | None) -> bool:
    """Whether a component is: its folder, and the weights of one that has a model's config."""
    if name is None or not folder.is_dir():
        return False
    files = list(folder.iterdir())
    is_model = any(file.name == "config.json" for file in files)
    return not is_model or any(file.suffix in _WEIGHTS for file in files)


def _scheduler(folder: Path) -> tuple[str | None, Mapping[str, Any]]:
    """Its scheduler's class and configuration, where they are there."""
    file = folder / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return None, {}
    with file_errors_as(ScheduleError):
        config = read_json(file, "scheduler's config")
    name = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(name, str):
        raise ScheduleError(f"{file}: names no scheduler (_class_name)")
    return name, config


@cache
def _source_of(name: str) -> ast.ClassDef | None:
    """The class `name` as diffusers' source has it; None where it has none of that name.

    Looked for as bytes, and once: these are hundreds of files.
    """
    spec = importlib.util.find_spec("diffusers")
    if spec is None or spec.origin is None:
        return None
    start = f"\nclass {name}(".encode()
    for file in sorted((Path(spec.origin).parent / "pipelines").rglob("pipeline_*.py")):
        text = file.read_bytes()
        if start in text:
            nodes = ast.parse(text).body
            return next(n for n in nodes if isinstance(n, ast.ClassDef) and n.name == name)
    return None


def _call_of(source: ast.ClassDef) -> dict[str, inspect.Parameter] | None:
    """What `__call__` takes; None where the class has none of its own."""
    for node in source.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__call__":
            return {p.name: p for p in _parameters(node.args) if p.name != "self"}
    return None


def _parameters(arguments: ast.arguments) -> Iterator[inspect.Parameter]:
    kind = inspect.Parameter
    plain = [*arguments.posonlyargs, *arguments.args]
    without = [None] * (len(plain) - len(arguments.defaults))
    for argument, default in zip(plain, [*without, *arguments.defaults], strict=True):
        yield kind(argument.arg, kind.POSITIONAL_OR_KEYWORD, default=_value(default))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield kind(argument.arg, kind.KEYWORD_ONLY, default=_value(default))


def _value(node: ast.expr | None) -> Any:
    """A default as far as it is a plain value."""
    if node is None:
        return inspect.Parameter.empty
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ...  # there is one


def _optional(source: ast.ClassDef) -> set[str]:
    for node in source.body:
        named = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        if named and node.targets[0].id == "_optional_components":  # type: ignore[attr-defined]
            value = _value(node.value)  # type: ignore[attr-defined]
            return set(value) if isinstance(value, list) else set()
    return set()
