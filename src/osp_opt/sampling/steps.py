"""One step of a sampler, as formulas on tensors in the variance-exploding (VE) scaling.

x = x0 + sigma eps at noise level sigma; D is the denoised prediction at x_a. Levels are Python
floats, so that coefficients are computed in float64 and nothing waits for a device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def ancestral_step(x: Tensor, denoised: Tensor, a: float, b: float, z: Tensor | None) -> Tensor:
    """x_b = D + (b/a)^2 (x_a - D) + b sqrt(1 - b^2/a^2) z: exact for a fixed D.

    The posterior of x_b given x_a and x0 = D of the noising process; the same as the DDPM step
    (Ho et al. 2020, arXiv 2006.11239, eq. 7) and as k-diffusion's Euler ancestral step. `z` is
    unit normal of x's shape; None means no noise, which is right only for b = 0.
    """
    ratio = (b / a) ** 2
    mean = denoised + ratio * (x - denoised)
    return mean if z is None else mean.add_(z, alpha=b * math.sqrt(1.0 - ratio))


def ode_step(x: Tensor, denoised: Tensor, a: float, b: float) -> Tensor:
    """x_b = D + (b/a) (x_a - D): the Euler step of the probability-flow ODE.

    The same as DDIM with eta = 0 (Song et al. 2021, arXiv 2010.02502, eq. 12).
    """
    return denoised + (b / a) * (x - denoised)


def two_step(denoised: Tensor, before: Tensor, factor: float) -> Tensor:
    """D_i + factor (D_i - D_{i-1}): what a corrected step holds in place of D_i."""
    return denoised + factor * (denoised - before) if factor else denoised


def correction_factors(sigmas: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Factors of `two_step`, a_i h_i / (2 h_{i-1}) with h_i = log(sigma_i / sigma_{i+1}), [n].

    With a = 1 they are those of DPM-Solver++ (2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2),
    which extrapolates D to the middle of its step; less than that where D carries fresh noise.
    `sigmas` [n + 1] descend, the last one may be 0; `weights` a_i [n], or none for all 0.
    """
    factors = [0.0] * (len(sigmas) - 1)
    for i, weight in enumerate(weights):
        if weight:
            step = math.log(sigmas[i] / sigmas[i + 1])
            step_before = math.log(sigmas[i - 1] / sigmas[i])
            factors[i] = weight * step / (2.0 * step_before)
    return factors


def vp_scale(sigma: float) -> float:
    """x_VE = vp_scale(sigma) x_VP; the network's input is x_VE / vp_scale(sigma)."""
    return math.sqrt(1.0 + sigma**2)
