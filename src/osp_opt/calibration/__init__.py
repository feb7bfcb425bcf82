"""What `calibrate` records while it samples, and the file that keeps it.

Importing this module needs no torch; the recorder (`osp_opt.calibration.recorder`) does.
"""

from osp_opt.calibration.statistics import Calibration, VideoStatistics, step_changes
from osp_opt.calibration.subsample import spread_indices

__all__ = ["Calibration", "VideoStatistics", "spread_indices", "step_changes"]
