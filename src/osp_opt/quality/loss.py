"""What a faster video loses: one measure and one rule for every command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from osp_opt.quality.intervals import FEWEST_SKEWED, Interval, mean_ci, positive_mean_ci

__all__ = [
    "CHANGED_PSNR",
    "EXIT_CODES",
    "FEWEST_JUDGED",
    "VISIBLE_PSNR",
    "Loss",
    "Verdict",
    "loss_of",
    "visibility",
]

Verdict = Literal["kept", "lost", "undecided"]
EXIT_CODES: Mapping[Verdict, int] = MappingProxyType({"kept": 0, "lost": 3, "undecided": 4})
"""What a command that was given a limit ends with."""
FEWEST_JUDGED = FEWEST_SKEWED
"""Videos that a verdict needs: one in six tips over, and fewer may well hold none that does."""
VISIBLE_PSNR = 40.0  # dB, at which differences can hardly be seen
CHANGED_PSNR = 30.0  # dB, below which a video is visibly another one


def visibility(psnr: float) -> str:
    """What a viewer makes of a distance in dB."""
    if psnr < CHANGED_PSNR:
        return "visibly another video"
    return "differences can hardly be seen" if psnr >= VISIBLE_PSNR else "small differences"


@dataclass(frozen=True)
class Loss:
    """The share of quality that was lost, mean over videos (of one prompt each), and its interval.

    measure: "VBench mean" (of its scores, as a share of the original's) where it was scored, else
    "SSIM" (1 - SSIM to the original's frames), or for frames too small for it "PSNR" (what is
    missing to 40 dB, as a share of them). right: of the bundled model's attributes, how
    many were as asked before and after, of `asked`; they are told, and do not decide.
    """

    measure: str
    share: Interval
    right: tuple[int, int] | None = None
    asked: int = 0

    def verdict(self, limit: float) -> Verdict:
        """Whether at most `limit` is lost; "kept" or "lost" only where the whole interval says so,
        and there are videos enough for one.
        """
        if self.share.count < FEWEST_JUDGED:
            return "undecided"
        if self.share.high <= limit:
            return "kept"
        return "lost" if self.share.low > limit else "undecided"

    def line(self) -> str:
        """For the terminal."""
        text = f"loss by {self.measure}: {self.share.text(100, 2, ' %')}"
        if self.right is not None:
            before, after = self.right
            text += f"; attributes as asked: {after} of {self.asked}, {before} by the original"
        return text

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return {
            "measure": self.measure,
            "share": self.share.as_json(),
            "right": None if self.right is None else list(self.right),
            "asked": self.asked,
        }


def loss_of(
    psnr: Sequence[float],
    ssim: Sequence[float] | None,
    right: tuple[int, int] | None = None,
    asked: int = 0,
    vbench: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Loss:
    """The loss of videos against the original's, each the mean of its frames.

    psnr in dB; ssim is None where a frame is too small for it; vbench has the mean scores of the
    original and of the others. Raises ValueError for no videos.
    """
    if vbench is not None and sum(vbench[0]) > 0:
        level = sum(vbench[0]) / len(vbench[0])
        lost = [(before - after) / level for before, after in zip(*vbench, strict=True)]
        return Loss("VBench mean", mean_ci(lost), right, asked)
    if ssim is not None:
        return Loss("SSIM", positive_mean_ci([1.0 - value for value in ssim]), right, asked)
    missing = [max(0.0, 1.0 - value / VISIBLE_PSNR) for value in psnr]
    return Loss("PSNR", positive_mean_ci(missing), right, asked)
