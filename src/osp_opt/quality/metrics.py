"""How close one video is to another: MSE, PSNR, SSIM, and how much one flickers.

Videos are [t h w c], c = 3, as arrays or tensors: uint8, or floating point with black at 0 and
white at ``peak``. PSNR and SSIM come from torchmetrics, which is imported when one is computed.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy.typing as npt
import torch
from einops import rearrange, reduce
from torch import Tensor

from osp_opt.base.errors import ShapeError

MAX_PSNR = 120.0
"""dB; reported for equal videos, whose PSNR is infinite, so that means stay finite. One level off
in one pixel of the bundled model's 29x64x64 video is 104 dB."""

SSIM_SIGMA = 1.5  # pixels, of the Gaussian window; this and its size are the SSIM paper's
SSIM_WINDOW = 11
_CHUNK_PIXELS = 4 * 2**20  # frames are taken a few at a time, since SSIM holds some 20 copies

Video = npt.ArrayLike | Tensor


@dataclass(frozen=True)
class QualityReport:
    """One video against its reference: over the whole video, and frame by frame."""

    mse: float
    """In squared levels of the frames as given (0..255 for uint8)."""
    psnr: float
    """dB, from the MSE over the whole video; at most MAX_PSNR."""
    ssim: float
    """Mean over frames."""
    frame_psnr: tuple[float, ...]
    frame_ssim: tuple[float, ...]

    def as_json(self) -> dict[str, Any]:
        """The fields, for json.dumps."""
        return asdict(self)


def compare(candidate: Video, reference: Video, peak: float | None = None) -> QualityReport:
    """All measures of two videos of one shape. Raises ShapeError as the measures do."""
    ssims = frame_ssim(candidate, reference, peak)
    return QualityReport(
        mse=mse(candidate, reference),
        psnr=psnr(candidate, reference, peak),
        ssim=float(ssims.mean()),
        frame_psnr=tuple(frame_psnr(candidate, reference, peak).tolist()),
        frame_ssim=tuple(ssims.tolist()),
    )


def mse(candidate: Video, reference: Video) -> float:
    """Mean squared difference of two tensors of one shape (any shape), in levels as given."""
    a, b = _pair(candidate, reference)
    return float(torch.mean((a.double() - b.double()) ** 2))


def psnr(candidate: Video, reference: Video, peak: float | None = None) -> float:
    """Peak signal-to-noise ratio of the whole video in dB: ``10 log10(peak^2 / MSE)``.

    peak: the value of white; 255 for uint8 and 1 for floating point when not given. Any shape.
    Raises ShapeError when shapes or types differ.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    a, b = _pair(candidate, reference)
    value = peak_signal_noise_ratio(a.double(), b.double(), data_range=_peak(a, peak))
    return min(float(value), MAX_PSNR)


def frame_psnr(candidate: Video, reference: Video, peak: float | None = None) -> Tensor:
    """PSNR of each frame of [t h w c] in dB -> float64 [t]. Otherwise as `psnr`."""
    a, b = _pair(candidate, reference)
    return torch.tensor(
        [psnr(x, y, _peak(a, peak)) for x, y in zip(a, b, strict=True)], dtype=torch.float64
    )


def ssim(candidate: Video, reference: Video, peak: float | None = None) -> float:
    """Structural similarity (Wang et al. 2004), the mean over frames. As `frame_ssim`."""
    return float(frame_ssim(candidate, reference, peak).mean())


def frame_ssim(candidate: Video, reference: Video, peak: float | None = None) -> Tensor:
    """Structural similarity of each frame of [t h w c], 1 for equal ones -> float64 [t].

    As torchmetrics defines it: windows that reach over the border see the frame mirrored there.
    Raises ShapeError when shapes or types differ, or frames are smaller than the 11x11 window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = _pair(candidate, reference)
    if a.ndim != 4 or min(a.shape[1:3]) < SSIM_WINDOW:
        raise ShapeError(
            f"SSIM needs frames [t h w c] of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, "
            f"got {tuple(a.shape)}"
        )
    count = max(1, _CHUNK_PIXELS // math.prod(a.shape[1:3]))
    values: list[Tensor] = []
    for start in range(0, len(a), count):
        x, y = (
            rearrange(video[start : start + count].double(), "t h w c -> t c h w")
            for video in (a, b)
        )
        value: Any = structural_similarity_index_measure(
            x, y, sigma=SSIM_SIGMA, data_range=_peak(a, peak), reduction="none"
        )
        values.append(value.reshape(-1))
    return torch.cat(values)


def flicker(video: Video, peak: float | None = None) -> float:
    """Mean absolute change from frame to frame of [t h w c], as a share of ``peak``.

    One minus VBench's temporal flickering score. 0 for a still video and for one frame. Compare
    it with the reference's: motion counts as well.
    """
    frames = torch.as_tensor(video)
    if len(frames) < 2:
        return 0.0
    change = (frames[1:].double() - frames[:-1].double()).abs()
    return float(reduce(change, "t h w c -> ", "mean")) / _peak(frames, peak)


def _pair(candidate: Video, reference: Video) -> tuple[Tensor, Tensor]:
    a, b = torch.as_tensor(candidate), torch.as_tensor(reference)
    if a.shape != b.shape or (a.dtype == torch.uint8) != (b.dtype == torch.uint8) or not a.numel():
        raise ShapeError(
            f"cannot compare {a.dtype} {tuple(a.shape)} with {b.dtype} {tuple(b.shape)}: "
            "sample both at one number of frames, height and width"
        )
    return a, b


def _peak(video: Tensor, peak: float | None) -> float:
    if peak is not None:
        return peak
    return 255.0 if video.dtype == torch.uint8 else 1.0
