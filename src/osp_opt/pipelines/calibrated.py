"""Is a calibration of the model that the options name? Read off its header, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import fingerprint_folder, open_for_reading, parse_json
from osp_opt.base.errors import CalibrationError
from osp_opt.options import ModelOptions

__all__ = ["check_family", "check_files"]

_HEADER = "osp_opt"
_MOST_BYTES = 1 << 26


def check_files(file: Path, options: ModelOptions) -> None:
    """Raise CalibrationError where a calibration file is of another pipeline than `options` name,
    as far as files tell. What is no calibration file is left to whoever loads it.
    """
    try:
        metadata = _metadata(file)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    check_family(metadata, file.parent, options)
    place = Path(options.pipeline or "").expanduser()
    setting = metadata.get("setting")
    if options.pipeline is None or not place.is_dir() or not isinstance(setting, dict):
        return
    if setting.get("model") != fingerprint_folder(place):
        raise CalibrationError(
            f"{file.parent}: calibrated with another pipeline than {options.pipeline}; run osp-opt "
            "calibrate for this one, in another --workdir"
        )


def check_family(metadata: Mapping[str, Any], folder: Path, options: ModelOptions) -> None:
    """Raise CalibrationError where a calibration was made with a pipeline and `options` name none,
    or the other way round.
    """
    made_by = metadata.get("pipeline")
    if made_by is not None and options.pipeline is None:
        raise CalibrationError(
            f"{folder}: calibrated with a {made_by}; name it with --pipeline, or calibrate again "
            "in another --workdir"
        )
    if made_by is None and options.pipeline is not None:
        raise CalibrationError(
            f"{folder}: calibrated with a model of Open-Sora-Plan; run osp-opt calibrate "
            "--pipeline in another --workdir"
        )


def _metadata(file: Path) -> dict[str, Any]:
    """The metadata in the header of a safetensors file: JSON behind an 8-byte length."""
    with open_for_reading(file, "calibration file") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > _MOST_BYTES:
            raise ValueError("no header")
        header = json.loads(stream.read(length))
    text, _ = parse_json(header["__metadata__"][_HEADER])
    found = parse_json(text)["metadata"]
    if not isinstance(found, dict):
        raise TypeError("no metadata")
    return found
