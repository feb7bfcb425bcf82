"""Everything that is measured on one pair of videos."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from osp_opt.evaluate.lpips import Lpips
from osp_opt.evaluate.pairs import Pair
from osp_opt.quality.metrics import SSIM_WINDOW, flicker, frame_psnr, frame_ssim, motion, psnr
from osp_opt.tiny.captions import parse
from osp_opt.tiny.checker import check

__all__ = ["Measured", "measure_pair"]

Values = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """One pair: `between` holds what compares the two (psnr in dB, ssim, lpips, jod); `reference`
    and `candidate` what either is by itself (flicker, amount_of_motion, attributes as asked, VBench
    dimensions).

    frame_psnr, frame_ssim: per frame; frame_ssim is empty for frames too small. seen: what the
    checker read, in words.
    """

    pair: Pair
    between: Values
    reference: Values
    candidate: Values
    frame_psnr: tuple[float, ...]
    frame_ssim: tuple[float, ...]
    seen: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_json(cls, pair: Pair, values: Mapping[str, Any]) -> Measured:
        """The inverse of `as_json`; the pair is known already."""
        names = ("psnr", "ssim", "lpips", "jod")
        return cls(
            pair,
            {name: values[name] for name in names if name in values},
            dict(values["reference"]),
            dict(values["candidate"]),
            tuple(values["frame_psnr"]),
            tuple(values["frame_ssim"]),
            dict(values["seen"]),
        )

    def as_json(self) -> dict[str, Any]:
        """The fields, with the files' names."""
        pair = self.pair
        return {
            "prompt": pair.prompt,
            "seed": pair.reference.seed,
            "reference_file": pair.reference.path.name,
            "candidate_file": pair.candidate.path.name,
            **self.between,
            "reference": self.reference,
            "candidate": self.candidate,
            "seen": self.seen,
            "frame_psnr": list(self.frame_psnr),
            "frame_ssim": list(self.frame_ssim),
        }


def measure_pair(pair: Pair, lpips: Lpips | None = None) -> Measured:
    """Measure one pair.

    Attributes are read by the bundled model's checker when the prompt is one of its captions and
    the video moves. Raises FileError and ShapeError as reading does.
    """
    reference, candidate = pair.frames()
    between: Values = {"psnr": psnr(candidate, reference)}
    frame_psnrs = tuple(frame_psnr(candidate, reference).tolist())
    frame_ssims: tuple[float, ...] = ()
    if min(reference.shape[1:3]) >= SSIM_WINDOW:
        ssims = frame_ssim(candidate, reference)
        between["ssim"], frame_ssims = float(ssims.mean()), tuple(ssims.tolist())
    if lpips is not None:
        between["lpips"] = lpips(candidate, reference)
    alone: list[Values] = []
    seen = {}
    for name, video in (("reference", reference), ("candidate", candidate)):
        moves = len(video) > 1
        values = {"flicker": flicker(video), "amount_of_motion": motion(video)} if moves else {}
        if pair.prompt is not None and len(video) > 1 and parse(pair.prompt) is not None:
            result = check(video, pair.prompt)
            values |= {name: float(right) for name, right in result.right().items()}
            seen[name] = str(result)
        alone.append(values)
    before, after = alone
    return Measured(pair, between, before, after, frame_psnrs, frame_ssims, seen)
