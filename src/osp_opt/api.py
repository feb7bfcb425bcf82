"""The searches as functions: what the commands do, with a pipeline that is in memory.

::

    calibration = calibrate(pipe, ["a red ball rolls away", "two boats at sea"])
    steps = search_steps(calibration, 50, pipe)
    cache = search_cache(calibration, 1.3, pipe)
    pipe("a red ball", schedule=steps.schedule, cache=cache.policy)

`pipe` is an `OpenSoraPlanPipeline`, or any text-to-video pipeline of diffusers that `--pipeline`
takes: as it is, or as a `DiffusersPipeline(pipe, arguments)`, where its calls need arguments that
no option names (and whose `denoise` takes what was found).

Options are the commands' own, by their names in Python (`steps`, `seed`, `guidance_scale`,
`verify`, `budget`, `max_loss`, ...); what loads or places a model is the pipeline's business. With
`folder` the files, ledgers included, stay there, so that a call that was interrupted goes on;
without it nothing is left.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

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
    SearchOptions,
    SearchStepsOptions,
)
from osp_opt.pipelines.in_memory import AnyPipeline, InMemory, in_memory, without_model
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
SearchT = TypeVar("SearchT", bound=SearchOptions)


def calibrate(
    pipe: AnyPipeline,
    prompts: str | Sequence[str],
    *,
    folder: str | Path | None = None,
    **options: Any,
) -> Calibration:
    """Sample `prompts` with the original model and record what the searches need.

    Raises OptionError for an option that is unknown or impossible; CheckpointError for a pipeline
    that makes no videos from text, or has no registered blocks; ScheduleError for a scheduler that
    cannot follow a schedule, or draws fresh noise.
    """
    given = in_memory(pipe)
    _check_undecided(given, options)
    with _place(folder) as workdir:
        made = _options(CalibrateOptions, workdir, {"text_prompt": prompts, **options}, given.named)
        context = _context(given, made.run_dir)
        record_calibration(made, given.maker(made, context), context)
        return Calibration.load(made.out_dir / CALIBRATION_FILE)


def search_steps(
    calibration: Calibration,
    steps: int | None = None,
    pipe: AnyPipeline | None = None,
    *,
    folder: str | Path | None = None,
    **options: Any,
) -> Decision:
    """The best schedule of `steps` steps, or, with `max_loss`, of the fewest that keep it.

    Without `pipe` the recorded table decides, but of a pipeline of diffusers, whose own steps only
    it knows. With it candidates race on videos (unless `verify` is False, when the table decides),
    and with `verify=True` fresh prompts judge the winner: `.schedule` is what was found,
    `.verification` what was shown. Raises as `calibrate`, CalibrationError where `pipe` is not the
    model that was calibrated.
    """
    values = {**options} if steps is None else {**options, "steps": steps}
    with _place(folder) as workdir:
        if pipe is None:
            values["verify"] = False
        source = _source(SearchStepsOptions, workdir, values, calibration, pipe)
        search = open_step_search(source)
        made = source.options
        if made.max_loss is not None and search.trials is not None:
            return fewest_within(search, search.trials, made.max_loss)[1]
        if len(made.steps) != 1 or made.all_steps:
            raise OptionError("steps: give one number of steps")
        return decide_and_verify(search, made.steps[0])


def search_cache(
    calibration: Calibration,
    ratio: float | None,
    pipe: AnyPipeline,
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
        source = _source(SearchCacheOptions, workdir, values, calibration, pipe)
        return cache_job.find(open_cache_search(source))


@contextmanager
def _place(folder: str | Path | None) -> Iterator[Path]:
    """The working folder: the one that was named, or one that is gone afterwards."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="osp-opt-") as name:
        yield Path(name)


def _options(
    model: type[OptionsT], workdir: Path, values: dict[str, Any], named: dict[str, str]
) -> OptionsT:
    try:
        return model(**values, **named, workdir=workdir)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = ".".join(map(str, problem["loc"])) or model.command
        message = str(problem["msg"]).removeprefix("Value error, ")
        raise OptionError(f"{name}: {message}") from error
    except TypeError as error:  # an option that is ours to give
        raise OptionError(f"{model.command}: {error}") from error


def _source(
    model: type[SearchT],
    workdir: Path,
    values: dict[str, Any],
    calibration: Calibration,
    pipe: AnyPipeline | None,
) -> Source[SearchT]:
    given = None if pipe is None else in_memory(pipe)
    if given is None:
        named = without_model(calibration.metadata)
    else:
        named = given.named
        _check_undecided(given, values)
    options = _options(model, workdir, values, named)
    context = _context(given, options.run_dir)
    maker = None if given is None else given.maker(options, context)
    return Source(options, context, calibration, options.run_dir, maker)


def _check_undecided(given: InMemory, values: Mapping[str, Any]) -> None:
    for name in given.decided & set(values):
        raise OptionError(f"{name}: the pipeline is loaded and placed already; do that with it")


def _context(given: InMemory | None, folder: Path) -> WorkerContext:
    folder.mkdir(parents=True, exist_ok=True)
    device = Device.open("cpu")
    if given is not None:
        name = str(given.dtype).removeprefix("torch.")
        device = Device.open(given.device.type, given.device.index or 0, dtype=name)
    return WorkerContext(device, Parallel(), folder, Progress(verbosity="quiet"))
