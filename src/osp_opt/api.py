"""The searches as functions: what the commands do, with a pipeline that is in memory.

::

    calibration = calibrate(pipe, ["a red ball rolls away", "two boats at sea"])
    steps = search_steps(calibration, 50, pipe)
    cache = search_cache(calibration, 1.3, pipe)
    pipe("a red ball", schedule=steps.schedule, cache=cache.policy)

Options are the commands' own, by their names in Python (`steps`, `seed`, `guidance_scale`,
`verify`, `budget`, `max_loss`, ...); what loads or places a model is the pipeline's business. With
`folder` the files, ledgers included, stay there, so that a call that was interrupted goes on;
without it nothing is left.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ValidationError

from osp_opt.base.errors import OptionError
from osp_opt.base.progress import Progress
from osp_opt.calibration import Calibration
from osp_opt.calibration.job import record_calibration
from osp_opt.calibration.source import Source
from osp_opt.options import (
    CALIBRATION_FILE,
    CalibrateOptions,
    SamplingOptions,
    SearchCacheOptions,
    SearchStepsOptions,
)
from osp_opt.pipelines.load import LoadedModel
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.sampling.pipeline import OpenSoraPlanPipeline
from osp_opt.search.cache import job as cache_job
from osp_opt.search.cache.report import Found
from osp_opt.search.cache.state import open_search as open_cache_search
from osp_opt.search.steps.decide import Decision, decide_and_verify
from osp_opt.search.steps.job import fewest_within
from osp_opt.search.steps.job import open_search as open_step_search
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel

__all__ = ["calibrate", "search_cache", "search_steps"]

OptionsT = TypeVar("OptionsT", bound=SamplingOptions)

_IN_MEMORY = "a pipeline in memory"
_HASHED = 1024  # values of each parameter that tell one model from another


def calibrate(
    pipe: OpenSoraPlanPipeline,
    prompts: str | Sequence[str],
    *,
    folder: str | Path | None = None,
    **options: Any,
) -> Calibration:
    """Sample `prompts` with the original model and record what the searches need.

    Raises OptionError for an option that is unknown or impossible.
    """
    with _place(folder) as workdir:
        made = _options(CalibrateOptions, workdir, {"text_prompt": prompts, **options})
        context = _context(pipe, made.run_dir)
        record_calibration(made, VideoMaker(made, context, _loaded(pipe)), context)
        return Calibration.load(made.out_dir / CALIBRATION_FILE)


def search_steps(
    calibration: Calibration,
    steps: int | None = None,
    pipe: OpenSoraPlanPipeline | None = None,
    *,
    folder: str | Path | None = None,
    **options: Any,
) -> Decision:
    """The best schedule of `steps` steps, or, with `max_loss`, of the fewest that keep it.

    Without `pipe` the recorded table decides. With it candidates race on videos, and with
    `verify=True` fresh prompts judge the winner: `.schedule` is what was found, `.verification`
    what was shown. Raises OptionError as `calibrate`, CalibrationError where `pipe` is not the
    model that was calibrated.
    """
    values = {**options} if steps is None else {**options, "steps": steps}
    with _place(folder) as workdir:
        if pipe is None:
            values["verify"] = False
        made = _options(SearchStepsOptions, workdir, values)
        search = open_step_search(_source(made, calibration, pipe))
        if made.max_loss is not None and search.trials is not None:
            return fewest_within(search, search.trials, made.max_loss)[1]
        if len(made.steps) != 1 or made.all_steps:
            raise OptionError("steps: give one number of steps")
        return decide_and_verify(search, made.steps[0])


def search_cache(
    calibration: Calibration,
    ratio: float | None,
    pipe: OpenSoraPlanPipeline,
    *,
    folder: str | Path | None = None,
    **options: Any,
) -> Found:
    """The policy that makes denoising `ratio` times faster and changes videos least.

    With `max_loss` (and `ratio` None): the fastest that keeps it. Blocks are timed with `pipe`;
    with `verify=True` candidates race on videos and fresh prompts judge the winner: `.policy` is
    what was found, `.evidence` what was shown. Raises as `search_steps`, and PolicyError for a
    ratio that no policy reaches.
    """
    values = {**options} if ratio is None else {**options, "ratio": ratio}
    values.setdefault("steps", len(calibration.timesteps))
    with _place(folder) as workdir:
        made = _options(SearchCacheOptions, workdir, values)
        return cache_job.find(open_cache_search(_source(made, calibration, pipe)))


@contextmanager
def _place(folder: str | Path | None) -> Iterator[Path]:
    """The working folder: the one that was named, or one that is gone afterwards."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="osp-opt-") as name:
        yield Path(name)


def _options(model: type[OptionsT], workdir: Path, values: dict[str, Any]) -> OptionsT:
    try:
        return model(**values, workdir=workdir, model_path=_IN_MEMORY)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"])) or model.command
        message = str(problem["msg"]).removeprefix("Value error, ")
        raise OptionError(f"{name}: {message}") from error
    except TypeError as error:  # an option that is ours to give
        raise OptionError(f"{model.command}: {error}") from error


def _source(
    options: OptionsT, calibration: Calibration, pipe: OpenSoraPlanPipeline | None
) -> Source[Any]:
    context = _context(pipe, options.run_dir)
    maker = None if pipe is None else VideoMaker(options, context, _loaded(pipe))
    return Source(options, context, calibration, options.run_dir, maker)


def _context(pipe: OpenSoraPlanPipeline | None, folder: Path) -> WorkerContext:
    folder.mkdir(parents=True, exist_ok=True)
    device = Device.open("cpu")
    if pipe is not None:
        where, dtype = pipe.transformer.device, pipe.transformer.dtype
        name = str(dtype).removeprefix("torch.")
        device = Device.open(where.type, where.index or 0, dtype=name)
    return WorkerContext(device, Parallel(), folder, Progress(verbosity="quiet"))


def _loaded(pipe: OpenSoraPlanPipeline) -> LoadedModel:
    config = dict(pipe.transformer.config)
    return LoadedModel(pipe, pipe.defaults, pipe.fingerprint or _digest(pipe), config)


def _digest(pipe: OpenSoraPlanPipeline) -> str:
    """SHA-256 (hex) over names, shapes and some values of all parameters."""
    digest = hashlib.sha256()
    for part in (pipe.transformer, pipe.vae):
        for name, tensor in part.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            some = tensor.detach().flatten()[:_HASHED].to("cpu", torch.float32)
            digest.update(some.contiguous().numpy().tobytes())
    return digest.hexdigest()
