"""One step of a sampler, as formulas on tensors in the variance-exploding (VE) scaling.

x = x0 + sigma eps at noise level sigma; D is the denoised prediction at x_a. Levels are Python
floats, so that coefficients are computed in float64 and nothing waits for a device.
"""

from __future__ import annotations

import math

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


def vp_scale(sigma: float) -> float:
    """x_VE = vp_scale(sigma) x_VP; the network's input is x_VE / vp_scale(sigma)."""
    return math.sqrt(1.0 + sigma**2)
