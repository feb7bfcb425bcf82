"""What a step search starts from: a calibration, its setting, and the model when it is needed."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from osp_opt.base.errors import CalibrationError
from osp_opt.calibration import Calibration
from osp_opt.generate.maker import VideoMaker
from osp_opt.options import SearchStepsOptions, calibration_file
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.paths import calibrated_paths, descend_on_paths
from osp_opt.search.steps.videos import record_videos
from osp_opt.system.context import WorkerContext

__all__ = ["Source", "open_source"]

_SHAPE = ("num_frames", "height", "width")
# Statistics of another one of these say nothing about what is going to be sampled.
_FATAL = ("model", *_SHAPE)


class Source:
    """A calibration and the model it was made with (loaded at the first need).

    Options that the user left open are the calibration's: its shape and its guidance.
    """

    def __init__(
        self,
        options: SearchStepsOptions,
        context: WorkerContext,
        calibration: Calibration,
        folder: Path,
    ) -> None:
        self.calibration = calibration
        self.folder = folder
        self._recorded = recorded_setting(calibration, folder)
        self._context = context
        taken = {
            name: self._recorded[name]
            for name in (*_SHAPE, "guidance_scale")
            if getattr(options, name) is None
        }
        self.options = options.model_copy(update=taken)

    @property
    def reference(self) -> TimestepSchedule:
        """The full-length schedule that was calibrated."""
        return TimestepSchedule(tuple(float(t) for t in self.calibration.timesteps))

    def maker(self) -> VideoMaker:
        """The model. Raises CalibrationError when it is not the one that was calibrated."""
        return self._maker

    @cached_property
    def _maker(self) -> VideoMaker:
        maker = VideoMaker(self.options, self._context)
        now = maker.setting(self.reference).as_json()
        different = [key for key in _FATAL if now[key] != self._recorded[key]]
        if different:
            found = ", ".join(
                "another model"
                if key == "model"
                else f"{key} {self._recorded[key]}, now {now[key]}"
                for key in different
            )
            raise CalibrationError(
                f"{self.folder}: calibrated with {found}; run osp-opt calibrate for this setting"
            )
        for key in ("sampler", "guidance_scale", "dtype"):
            if now[key] != self._recorded[key]:
                self._context.progress.say(
                    f"note: calibrated with {key} {self._recorded[key]}, now {now[key]}"
                )
        return maker

    def setting(self, schedule: TimestepSchedule) -> dict[str, Any]:
        """What a schedule found here is for; needs no model."""
        return {
            **self._recorded,
            "sampler": self.options.sampler,
            "guidance_scale": self.options.guidance_scale,
            "steps": len(schedule),
            "timesteps": list(schedule.timesteps),
        }

    def descend(self, length: int) -> tuple[TimestepSchedule, int]:
        """Align Your Steps on this source's videos: the schedule, and network evaluations made."""
        maker = self.maker()
        paths = calibrated_paths(self.options, maker, self.calibration, self.folder)
        return descend_on_paths(self.options, paths, length, self._context)


def open_source(options: SearchStepsOptions, context: WorkerContext) -> Source:
    """The calibration folder or file, or one made now of a folder of videos."""
    place = options.videos_path or options.calibration_dir
    file = calibration_file(place)
    if file.is_file() or options.videos_path is None:
        return Source(options, context, Calibration.load(file), file.parent)
    calibration = record_videos(options, context, place)
    return Source(options, context, calibration, context.run_dir)


def recorded_setting(calibration: Calibration, folder: Path) -> dict[str, Any]:
    """The setting a calibration was made in. Raises CalibrationError when it lacks one."""
    setting = calibration.metadata.get("setting")
    names = (*_FATAL, "sampler", "guidance_scale", "dtype")
    if not isinstance(setting, dict) or any(name not in setting for name in names):
        raise CalibrationError(f"{folder}: does not say what it was made with; calibrate again")
    return setting
