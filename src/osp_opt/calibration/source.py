"""What a search starts from: a calibration, its setting, and the model when it is needed.

Both searches open it here: one that `calibrate` left, one recorded on a folder of videos, or, when
there is none, one that is made now.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, Generic, TypeVar

from osp_opt.base.errors import CalibrationError
from osp_opt.base.samplers import SAMPLER_KINDS, SamplerKind
from osp_opt.calibration.job import record_calibration
from osp_opt.calibration.statistics import Calibration
from osp_opt.calibration.videos import record_videos
from osp_opt.generate.manifest import MANIFEST, read_takes
from osp_opt.options import (
    CALIBRATED_PROMPTS,
    CALIBRATION_FILE,
    CalibrateOptions,
    SearchOptions,
    SearchStepsOptions,
    calibration_file,
)
from osp_opt.pipelines.calibrated import Calibrated
from osp_opt.pipelines.maker import Maker, open_maker
from osp_opt.pipelines.open_sora_plan import can_be_recorded
from osp_opt.quality.yardstick import Yardstick
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.context import WorkerContext

__all__ = ["Source", "open_source"]

OptionsT = TypeVar("OptionsT", bound=SearchOptions)

# Statistics of another one of these say nothing about what is going to be sampled.
_FATAL = ("model", "num_frames", "height", "width", "guidance_scale", "arguments")
_ANY_SAMPLER = "EulerDiscrete"  # what calibrates for samplers that cannot be recorded themselves


class Source(Generic[OptionsT]):
    """A calibration and the model it was made with (loaded at the first need).

    Options that the user left open are the calibration's: `options` says what was taken over.
    """

    def __init__(
        self,
        options: OptionsT,
        context: WorkerContext,
        calibration: Calibration,
        folder: Path,
        maker: Maker | None = None,
    ) -> None:
        self.calibration = calibration
        self.folder = folder
        self._known = Calibrated(calibration.metadata, folder)
        self._recorded = self._known.setting
        self._known.check_family(options)
        self.context = context
        self._loaded = maker
        self.options: OptionsT = options.model_copy(update=self._known.taken_over(options))

    @property
    def reference(self) -> TimestepSchedule:
        """The full-length schedule that was calibrated."""
        timesteps = tuple(float(t) for t in self.calibration.timesteps)
        return TimestepSchedule(timesteps, scale=self.calibration.scale)

    @property
    def kind(self) -> SamplerKind:
        """What the sampler that schedules are for is."""
        return self.calibration.kind or SAMPLER_KINDS[self.options.sampler]

    def even(self, steps: int) -> TimestepSchedule:
        """The steps that every searched schedule has to beat."""
        return (
            TimestepSchedule.uniform(steps) if self._known.is_enough else self.maker().even(steps)
        )

    @property
    def yardstick(self) -> Yardstick | None:
        """How far the original's steps are from convergence, where `calibrate` measured it."""
        return Yardstick.load(self.folder)

    @property
    def seconds_per_video(self) -> float | None:
        """Median time that denoising took while recording; None where it is not known."""
        if not (self.folder / MANIFEST).is_file():
            return None
        videos = [video for take in read_takes(self.folder) for video in take.videos]
        known = [video.recorded_seconds for video in videos if video.recorded_seconds]
        return median(known) if known else None

    def maker(self) -> Maker:
        """The model. Raises CalibrationError when it is not the one that was calibrated."""
        return self._maker

    @cached_property
    def _maker(self) -> Maker:
        if self._loaded is not None:
            maker = self._loaded.for_options(self.options)
        else:
            maker = open_maker(self.options, self.context)
        now = maker.setting(self.reference).as_json()
        fatal: tuple[str, ...] = _FATAL
        of_blocks = not isinstance(self.options, SearchStepsOptions)
        if of_blocks and can_be_recorded(now["sampler"]):
            # What blocks change from step to step is another thing with fresh noise and without.
            fatal = (*_FATAL, "sampler")
        different = [key for key in fatal if now.get(key) != self._recorded.get(key)]
        if different:
            found = ", ".join(
                "another model"
                if key == "model"
                else f"{key} {self._recorded.get(key)}, now {now.get(key)}"
                for key in different
            )
            raise CalibrationError(
                f"{self.folder}: calibrated with {found}; run osp-opt calibrate for this setting, "
                "in another --workdir"
            )
        blocks = self.calibration.block_gram.shape[-1] - 1
        if of_blocks and blocks != maker.num_blocks:
            raise CalibrationError(
                f"{self.folder}: was recorded on {blocks} blocks and the model has "
                f"{maker.num_blocks}; run osp-opt calibrate with this model"
            )
        for key in ("sampler", "dtype"):
            if now[key] != self._recorded[key]:
                self.context.progress.say(
                    f"note: calibrated with {key} {self._recorded[key]}, now {now[key]}"
                )
        return maker

    def setting(self, schedule: TimestepSchedule) -> dict[str, Any]:
        """What a schedule found here is for."""
        if self._known.is_enough:
            return self._known.setting_for(schedule.timesteps, self.options)
        return self.maker().setting(schedule).as_json()


def open_source(options: OptionsT, context: WorkerContext) -> Source[OptionsT]:
    """The calibration folder or file, or one made now, of a folder of videos or by sampling."""
    videos = options.videos_path if isinstance(options, SearchStepsOptions) else None
    place = videos or options.calibration_dir
    file = calibration_file(place)
    if context.parallel.broadcast_object(file.is_file()):
        return Source(options, context, Calibration.load(file), file.parent)
    if videos is not None and isinstance(options, SearchStepsOptions):
        calibration = record_videos(options, context, videos)
        return Source(options, context, calibration, context.run_dir)
    if options.calibration is not None:
        raise CalibrationError(
            f"--calibration {place}: holds no {CALIBRATION_FILE}; check the path"
        )
    return _made_now(options, context)


def _made_now(options: OptionsT, context: WorkerContext) -> Source[OptionsT]:
    """What `osp-opt calibrate` with the same options would leave, where it would leave it."""
    wanted: CalibrateOptions = options.calibrate_options(CALIBRATED_PROMPTS)
    if not can_be_recorded(wanted.sampler):
        wanted = wanted.model_copy(update={"sampler": _ANY_SAMPLER})
    maker = open_maker(options, context)
    record_calibration(wanted, maker.for_options(wanted), context, last=False)
    calibration = Calibration.load(calibration_file(wanted.out_dir))
    return Source(options, context, calibration, wanted.out_dir, maker)
