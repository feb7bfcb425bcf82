"""How far the original's own steps are from convergence: the scale by which a loss is read.

The same noise at several times as many steps gives (nearly) the converged video. A faster video
that is nearer to the original than the original is to that one loses less than its steps do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import read_json, write_json
from osp_opt.base.errors import CalibrationError
from osp_opt.quality.intervals import Interval

__all__ = ["Yardstick"]

_FILE = "yardstick.json"
_FITS = ("model", "steps", "sampler", "num_frames", "height", "width", "guidance_scale")


@dataclass(frozen=True)
class Yardstick:
    """PSNR (dB, over videos) between the original's `steps` steps and `converged` of them.

    setting: what the original's videos were made with, as manifests say it.
    """

    steps: int
    converged: int
    psnr: Interval
    setting: Mapping[str, Any] = field(default_factory=dict)

    def line(self, own: Interval) -> str:
        """Beside the PSNR of something faster to the original's videos."""
        less = own.estimate > self.psnr.estimate
        return (
            f"{'less' if less else 'more'} than {self.steps} steps lose themselves: they are "
            f"{self.psnr.text(digits=1, unit=' dB')} from {self.converged} steps"
        )

    def fits(self, setting: Mapping[str, Any]) -> bool:
        """Whether videos of that setting are the ones that were measured."""
        return all(setting.get(name) == self.setting.get(name) for name in _FITS)

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return {
            "steps": self.steps,
            "converged_steps": self.converged,
            "psnr": self.psnr.as_json(),
            "setting": {name: self.setting.get(name) for name in _FITS},
        }

    def save(self, folder: Path) -> None:
        """Keep it in a calibration's folder."""
        write_json(folder / _FILE, self.as_json())

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Yardstick:
        """The inverse of `as_json`. Raises KeyError, TypeError or ValueError for anything else."""
        psnr = Interval.from_json(values["psnr"])
        setting = dict(values.get("setting") or {})
        return cls(int(values["steps"]), int(values["converged_steps"]), psnr, setting)

    @classmethod
    def load(cls, folder: Path) -> Yardstick | None:
        """What `save` left in `folder`, or None. Raises CalibrationError for anything else."""
        path = folder / _FILE
        if not path.is_file():
            return None
        try:
            return cls.from_json(read_json(path, "yardstick"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(f"{path}: not a yardstick of osp-opt; delete it") from error
