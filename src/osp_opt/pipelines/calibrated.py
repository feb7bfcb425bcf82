"""What a calibration says of the model that it was made with, before that is loaded. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from osp_opt.base.artifacts import fingerprint_folder, open_for_reading, parse_json, setting_of
from osp_opt.base.errors import CalibrationError
from osp_opt.options import ModelOptions, SamplingOptions
from osp_opt.pipelines.files import call_arguments

__all__ = ["HEADER", "Calibrated", "check_files", "read_header"]

HEADER = "osp_opt"
"""In the file's metadata: a JSON list of the description (JSON again) and the digest."""
_MOST_BYTES = 1 << 26
_SHAPE = ("num_frames", "height", "width")
_OF_BOTH = ("model", "sampler", "dtype")


@dataclass(frozen=True)
class Calibrated:
    """The `metadata` of a calibration in `folder`. What a pipeline of diffusers does where nobody
    says, only itself knows; of Open-Sora-Plan's models the calibration tells.
    """

    metadata: Mapping[str, Any]
    folder: Path

    @property
    def setting(self) -> dict[str, Any]:
        """The setting that it was made in. Raises CalibrationError when it lacks one."""
        setting = setting_of(self.metadata)
        wanted = _OF_BOTH if self._pipeline is not None else (*_OF_BOTH, *_SHAPE, "guidance_scale")
        if any(name not in setting for name in wanted):
            raise CalibrationError(
                f"{self.folder}: does not say what it was made with; calibrate again"
            )
        return setting

    @property
    def _pipeline(self) -> Any:
        """The class of a pipeline of diffusers; None for a model of Open-Sora-Plan."""
        return self.metadata.get("pipeline")

    def check_family(self, options: ModelOptions) -> None:
        """Raise CalibrationError where it was made with a pipeline and `options` name none, or the
        other way round.
        """
        if self._pipeline is not None and options.pipeline is None:
            raise CalibrationError(
                f"{self.folder}: calibrated with a {self._pipeline}; name it with --pipeline, or "
                "calibrate again in another --workdir"
            )
        if self._pipeline is None and options.pipeline is not None:
            raise CalibrationError(
                f"{self.folder}: calibrated with a model of Open-Sora-Plan; run osp-opt calibrate "
                "--pipeline in another --workdir"
            )

    def taken_over(self, options: SamplingOptions) -> dict[str, Any]:
        """What it says of options that were left open. (A pipeline's call has arguments of its
        own.)
        """
        if self._pipeline is not None:
            return {}
        known: Mapping[str, Any] = {**self.metadata, **self.setting}
        taken = {
            name: known[name]
            for name in (*_SHAPE, "guidance_scale", "negative_prompt", "max_sequence_length")
            if getattr(options, name) is None and known.get(name) is not None
        }
        for name in ("sampler", "noise"):
            if name not in options.model_fields_set and known.get(name) is not None:
                taken[name] = known[name]
        return taken

    @property
    def is_enough(self) -> bool:
        """Whether it tells, without the model, what a schedule has to beat and what it is for."""
        return self._pipeline is None

    def setting_for(self, timesteps: Sequence[float], options: SamplingOptions) -> dict[str, Any]:
        """What a schedule that is found from it is for, where it is enough."""
        return {
            **self.setting,
            "sampler": options.sampler,
            "guidance_scale": options.guidance_scale,
            "steps": len(timesteps),
            "timesteps": list(timesteps),
        }


def check_files(file: Path, options: ModelOptions) -> None:
    """Raise CalibrationError where a calibration file is of another pipeline than `options` name,
    or of other arguments, as far as files tell. What is no calibration file is left to whoever
    loads it.
    """
    try:
        metadata = _metadata(file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    Calibrated(metadata, file.parent).check_family(options)
    place = Path(options.pipeline or "").expanduser()
    setting = setting_of(metadata)
    if options.pipeline is None or not place.is_dir() or not setting:
        return
    if setting.get("model") != fingerprint_folder(place):
        raise CalibrationError(
            f"{file.parent}: calibrated with another pipeline than {options.pipeline}; run osp-opt "
            "calibrate for this one, in another --workdir"
        )
    then, now = setting.get("arguments"), call_arguments(options)
    if then != now:
        raise CalibrationError(
            f"{file.parent}: calibrated with arguments {then}, now {now}; give those, or run "
            "osp-opt calibrate for these in another --workdir"
        )


def read_header(stream: IO[bytes]) -> tuple[str, str]:
    """Description and digest in the header of a safetensors file: JSON behind an 8-byte length.

    Raises ValueError, KeyError or TypeError for anything else.
    """
    length = int.from_bytes(stream.read(8), "little")
    if length > _MOST_BYTES:
        raise ValueError("no header")
    text, digest = parse_json(json.loads(stream.read(length))["__metadata__"][HEADER])
    return text, digest


def _metadata(file: Path) -> dict[str, Any]:
    with open_for_reading(file, "calibration file") as stream:
        found = parse_json(read_header(stream)[0])["metadata"]
    if not isinstance(found, dict):
        raise TypeError("no metadata")
    return found
