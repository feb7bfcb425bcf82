"""Measures of fidelity against closed forms and a direct transcription of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from osp_opt.base.errors import ShapeError
from osp_opt.quality.metrics import (
    MAX_PSNR,
    flicker,
    frame_psnr,
    frame_ssim,
    motion,
    mse,
    psnr,
    ssim,
)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004, eq. 13, one channel; windows see the image mirrored at its border."""
    axis = np.arange(11) - 5
    window = np.exp(-(axis**2) / (2 * 1.5**2))
    window = np.outer(window, window) / window.sum() ** 2
    height, width = a.shape
    a, b = (np.pad(x.astype(float), 5, mode="reflect") for x in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for i in range(height):
        for j in range(width):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx = (window * x * x).sum() - mx**2
            vy = (window * y * y).sum() - my**2
            cov = (window * x * y).sum() - mx * my
            top = (2 * mx * my + c1) * (2 * cov + c2)
            values.append(top / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_constant_difference_has_a_closed_form() -> None:
    a = np.full((4, 16, 16, 3), 100, np.uint8)
    b = a + np.uint8(5)
    assert mse(a, b) == 25
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / 25))
    # No variance, so only the luminance term is left.
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 105 + c1) / (100**2 + 105**2 + c1)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)


def test_video_psnr_pools_errors_before_the_logarithm() -> None:
    a = np.zeros((2, 16, 16, 3), np.uint8)
    b = a.copy()
    b[0] = 10
    b[1] = 2
    assert frame_psnr(a, b).tolist() == pytest.approx(
        [10 * np.log10(255**2 / 100), 10 * np.log10(255**2 / 4)]
    )
    assert psnr(a, b) == pytest.approx(10 * np.log10(255**2 / 52))


def test_ssim_is_the_papers() -> None:
    a, b = noise(2, 24, 28, 3), noise(2, 24, 28, 3, seed=1) // 2 + 60
    a = (0.7 * a + 0.3 * b).astype(np.uint8)
    expected = [
        np.mean([ssim_by_definition(x[..., c], y[..., c]) for c in range(3)])
        for x, y in zip(a, b, strict=True)
    ]
    assert frame_ssim(a, b).tolist() == pytest.approx(expected, abs=1e-6)


def test_equal_videos() -> None:
    a = noise(3, 16, 16, 3)
    assert (mse(a, a), psnr(a, a), ssim(a, a)) == (0, MAX_PSNR, pytest.approx(1))
    assert frame_psnr(a, a).tolist() == [MAX_PSNR] * 3


def test_uint8_and_unit_range_agree() -> None:
    a, b = noise(3, 16, 16, 3), noise(3, 16, 16, 3, seed=1)
    x, y = (torch.as_tensor(v).float() / 255 for v in (a, b))
    assert psnr(x, y) == pytest.approx(psnr(a, b), abs=1e-4)
    assert ssim(x, y) == pytest.approx(ssim(a, b), abs=1e-5)
    assert mse(x, y) == pytest.approx(mse(a, b) / 255**2)


def test_one_frame_and_the_whole_agree() -> None:
    a, b = noise(1, 16, 16, 3), noise(1, 16, 16, 3, seed=1)
    assert frame_psnr(a, b).tolist() == [pytest.approx(psnr(a, b))]
    assert frame_ssim(a, b).tolist() == [pytest.approx(ssim(a, b))]


def test_order_does_not_matter_and_inputs_stay() -> None:
    a, b = noise(2, 16, 16, 3), noise(2, 16, 16, 3, seed=1)
    before = a.copy()
    assert (mse(a, b), psnr(a, b)) == (mse(b, a), psnr(b, a))
    assert frame_ssim(a, b).tolist() == pytest.approx(frame_ssim(b, a).tolist())
    assert np.array_equal(a, before)


def test_flicker() -> None:
    still = np.repeat(noise(1, 16, 16, 3), 4, axis=0)
    assert flicker(still) == 0
    assert flicker(still[:1]) == 0
    blinking = np.zeros((5, 8, 8, 3), np.uint8)
    blinking[1::2] = 51
    assert flicker(blinking) == pytest.approx(0.2)
    assert flicker(blinking / 255.0) == pytest.approx(0.2)


def test_motion_is_p910_s_temporal_information() -> None:
    """Rec. P.910: the standard deviation over the picture of the change of luma, here its mean."""
    video = noise(4, 16, 20, 3)
    luma = video.astype(float) @ (0.2126, 0.7152, 0.0722)
    expected = np.diff(luma, axis=0).reshape(3, -1).std(axis=1).mean() / 255
    assert motion(video) == pytest.approx(expected)
    still = np.repeat(video[:1] // 2, 3, axis=0)
    assert motion(still) == motion(video[:1]) == 0
    still[1] += 40  # the whole picture flickers, nothing moves
    assert motion(still) == pytest.approx(0, abs=1e-12)
    assert flicker(still) > 0.1


@pytest.mark.parametrize("shape", [(3, 11, 11), (2, 37, 64), (1, 128, 90)])
def test_psnr_and_ssim_are_those_of_torchmetrics(shape: tuple[int, int, int]) -> None:
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    a = np.clip(np.cumsum(noise(*shape, 3) % 9 - 4.0, axis=2) + 120, 0, 255).astype(np.uint8)
    b = np.clip(a + (noise(*shape, 3, seed=1) % 21 - 10.0), 0, 255).astype(np.uint8)
    a[:, :9, :9] = b[:, :9, :9] = 77  # no variance, where rounding decides
    x, y = (torch.from_numpy(v).double().permute(0, 3, 1, 2) for v in (a, b))
    expected = structural_similarity_index_measure(
        x, y, sigma=1.5, data_range=255.0, reduction="none"
    )
    assert frame_ssim(a, b).tolist() == pytest.approx(expected.reshape(-1).tolist(), abs=1e-10)
    ratio = peak_signal_noise_ratio(x, y, data_range=255.0)
    assert psnr(a, b) == pytest.approx(float(ratio), abs=1e-5)  # it takes a logarithm in float32


def test_whatever_the_shape() -> None:
    a, b = np.arange(5.0), np.zeros(5)
    assert mse(a, b) == pytest.approx(6)
    assert mse(np.float64(3.0), np.float64(1.0)) == 4
    x = torch.linspace(0, 1, 24).reshape(1, 2, 3, 4)
    assert mse(x.bfloat16(), torch.zeros(1, 2, 3, 4, dtype=torch.bfloat16)) == pytest.approx(
        float((x.bfloat16().double() ** 2).mean())
    )


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (noise(2, 16, 16, 3), noise(3, 16, 16, 3)),
        (noise(2, 16, 16, 3), noise(2, 16, 16, 3) / 255.0),
        (noise(0, 16, 16, 3), noise(0, 16, 16, 3)),
        (noise(2, 8, 16, 3), noise(2, 8, 16, 3)),
    ],
)
def test_what_cannot_be_compared(a: np.ndarray, b: np.ndarray) -> None:
    with pytest.raises(ShapeError):
        frame_ssim(a, b)
