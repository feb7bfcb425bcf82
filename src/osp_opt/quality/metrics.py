"""How close one video is to another: MSE, PSNR, SSIM, and how much one flickers and moves.

Videos are [t h w c], c = 3, as arrays or tensors: uint8, or floating point with black at 0 and
white at 1. Everything is computed in float64 a few frames at a time, so that memory does
not grow with the length of a video.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from osp_opt.base.errors import ShapeError

MAX_PSNR = 120.0
"""dB; reported for equal videos, whose PSNR is infinite, so that means stay finite. One level off
in one pixel of the bundled model's 29x64x64 video is 104 dB."""

LEAST_ERROR = 1e-30
"""Squared error that stands for none where logarithms or quotients are taken."""

SSIM_SIGMA = 1.5  # pixels, of the Gaussian window; this and what follows are the SSIM paper's
SSIM_WINDOW = 11
SSIM_K1, SSIM_K2 = 0.01, 0.03
LUMA = (0.2126, 0.7152, 0.0722)  # of red, green, blue (ITU-R BT.709)
_CHUNK_VALUES = 4 * 2**20  # compared at once: 32 MB in float64, of which a handful exist

Video = npt.ArrayLike | Tensor


def mse(candidate: Video, reference: Video) -> float:
    """Mean squared difference of two tensors of one shape (any shape), in levels as given."""
    a, b = _pair(candidate, reference)
    return _mse(a, b)


def log_error(squared: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Natural logarithm of squared errors (any shape), finite where there is none."""
    return np.log(np.maximum(np.asarray(squared, dtype=np.float64), LEAST_ERROR))


def psnr(candidate: Video, reference: Video) -> float:
    """Peak signal-to-noise ratio of the whole video in dB: ``10 log10(peak^2 / MSE)``.

    The peak is white: 255 for uint8, 1 for floating point. Any shape. Raises ShapeError when shapes
    or types differ.
    """
    a, b = _pair(candidate, reference)
    return _decibels(_mse(a, b), _white(a))


def frame_psnr(candidate: Video, reference: Video) -> Tensor:
    """PSNR of each frame of [t h w c] in dB -> float64 [t]. Otherwise as `psnr`."""
    a, b = _pair(candidate, reference)
    white = _white(a)
    values = [_decibels(_mse(x, y), white) for x, y in zip(a, b, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def ssim(candidate: Video, reference: Video) -> float:
    """Structural similarity (Wang et al. 2004), the mean over frames. As `frame_ssim`."""
    return float(frame_ssim(candidate, reference).mean())


def frame_ssim(candidate: Video, reference: Video) -> Tensor:
    """Structural similarity of each frame of [t h w c], 1 for equal ones -> float64 [t].

    Equation 13 of the paper, mean over pixels and colours; windows that reach over the border see
    the frame mirrored there, and no variance is below 0 (as torchmetrics defines it, to rounding).
    Raises ShapeError when shapes or types differ, or frames are smaller than the 11x11 window.
    """
    a, b = _pair(candidate, reference)
    if a.ndim != 4 or min(a.shape[1:3]) < SSIM_WINDOW:
        raise ShapeError(
            f"SSIM needs frames [t h w c] of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, "
            f"got {tuple(a.shape)}"
        )
    white = _white(a)
    values = [_frame_ssim(x, y, white) for x, y in zip(a, b, strict=True)]
    return torch.tensor(values, dtype=torch.float64)


def flicker(video: Video) -> float:
    """Mean absolute change from frame to frame of [t h w c], as a share of white.

    One minus VBench's temporal flickering score. 0 for a still video and for one frame. Compare
    it with the reference's: motion counts as well.
    """
    frames = torch.as_tensor(video)
    if len(frames) < 2:
        return 0.0
    changes = [float((_levels(y) - _levels(x)).abs().mean()) for x, y in pairwise(frames)]
    return float(np.mean(changes)) / _white(frames)


def motion(video: Video) -> float:
    """How much moves in [t h w c], as a share of white; 0 for a still video and for one frame.

    The temporal information of ITU-T Rec. P.910, eq. TI: the spread over the picture (standard
    deviation) of the luma's change from frame to frame. Here its mean over time, not its maximum:
    one cut shall not hide that all else is frozen. Unlike `flicker` it does not see the whole
    picture become brighter or darker.
    """
    frames = torch.as_tensor(video)
    if len(frames) < 2:
        return 0.0
    weights = torch.tensor(LUMA, dtype=torch.float64)
    changes = [((_levels(y) - _levels(x)) @ weights).std(correction=0) for x, y in pairwise(frames)]
    return float(torch.stack(changes).mean()) / _white(frames)


def _frame_ssim(a: Tensor, b: Tensor, white: float) -> float:
    """Of two frames [h w c]."""
    x, y = (_levels(frame).numpy() for frame in (a, b))
    c1, c2 = (SSIM_K1 * white) ** 2, (SSIM_K2 * white) ** 2
    mean_x, mean_y = _windowed(x), _windowed(y)
    covariance = _windowed(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    variances = np.maximum(_windowed(x * x) - mean_x**2, 0.0)
    variances += np.maximum(_windowed(y * y) - mean_y**2, 0.0)
    return float(np.mean(similarity / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))))


def _windowed(x: np.ndarray) -> np.ndarray:
    """Mean of [h w c] in the Gaussian window around each pixel, each colour for itself."""
    reach = (SSIM_WINDOW - 1) / 2 / SSIM_SIGMA
    found: np.ndarray = gaussian_filter(
        x, (SSIM_SIGMA, SSIM_SIGMA, 0.0), mode="mirror", truncate=reach
    )
    return found


def _mse(a: Tensor, b: Tensor) -> float:
    squares = sum(float((x - y).square().sum()) for x, y in _chunks(a, b))
    return squares / a.numel()


def _chunks(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both, some rows at a time, in float64 on the host."""
    if a.ndim == 0:
        a, b = a[None], b[None]
    rows = max(1, _CHUNK_VALUES * len(a) // a.numel())
    for start in range(0, len(a), rows):
        yield _levels(a[start : start + rows]), _levels(b[start : start + rows])


def _levels(x: Tensor) -> Tensor:
    return x.cpu().double()


def _decibels(error: float, white: float) -> float:
    return min(10.0 * math.log10(white**2 / error), MAX_PSNR) if error > 0.0 else MAX_PSNR


def _pair(candidate: Video, reference: Video) -> tuple[Tensor, Tensor]:
    a, b = torch.as_tensor(candidate), torch.as_tensor(reference)
    if a.shape != b.shape or (a.dtype == torch.uint8) != (b.dtype == torch.uint8) or not a.numel():
        raise ShapeError(
            f"cannot compare {a.dtype} {tuple(a.shape)} with {b.dtype} {tuple(b.shape)}: "
            "sample both at one number of frames, height and width"
        )
    return a, b


def _white(video: Tensor) -> float:
    return 255.0 if video.dtype == torch.uint8 else 1.0
