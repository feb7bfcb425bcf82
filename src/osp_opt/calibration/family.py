"""Is a calibration of the kind of model that the options name?"""

from __future__ import annotations

from pathlib import Path

from osp_opt.base.errors import CalibrationError
from osp_opt.calibration.statistics import Calibration
from osp_opt.options import SearchOptions

__all__ = ["check_family"]


def check_family(calibration: Calibration, folder: Path, options: SearchOptions) -> None:
    """Raise CalibrationError where a calibration was made with a pipeline and `options` name none,
    or the other way round.
    """
    made_by = calibration.metadata.get("pipeline")
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
