"""An exactly solvable model: independent Gaussian modes, for tests of step searches.

With data N(0, v) per mode the ideal denoiser is D(x, s) = v / (v + s^2) x, the sampler's output
is Gaussian, and its squared Wasserstein distance to the data is (sqrt(p) - sqrt(v))^2.
"""

from __future__ import annotations

import itertools

import numpy as np

VARIANCES = np.logspace(-2, np.log10(4.0), 2000)


def training_sigmas() -> np.ndarray:
    """The 1000 noise levels of the linear-beta model, computed here independently."""
    alphas = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
    return np.sqrt((1.0 - alphas) / alphas)


def sigma_at(timesteps: np.ndarray) -> np.ndarray:
    return np.interp(timesteps, np.arange(1000), training_sigmas())


def exact_gram(sigmas: np.ndarray, variances: np.ndarray = VARIANCES) -> np.ndarray:
    """<D_k, D_j> on one noise path: x_s - x_r is independent of x_r, so v^2 / (v + max^2)."""
    own = np.array([np.mean(variances**2 / (variances + s * s)) for s in sigmas])
    return np.where(sigmas[:, None] >= sigmas[None, :], own[:, None], own[None, :])


def ancestral_distance(timesteps: np.ndarray, variances: np.ndarray = VARIANCES) -> float:
    """W2^2 (mean over modes) of Euler-ancestral sampling on descending `timesteps`."""
    sigmas = np.append(sigma_at(np.asarray(timesteps)), 0.0)
    power = np.full_like(variances, sigmas[0] ** 2)
    for a, b in itertools.pairwise(sigmas):
        shrink = variances / (variances + a * a)
        kept = (b / a) ** 2
        power = power * (shrink + kept * (1 - shrink)) ** 2 + b * b * (1 - kept)
    return float(np.mean((np.sqrt(power) - np.sqrt(variances)) ** 2))


def deterministic_distance(timesteps: np.ndarray, variances: np.ndarray = VARIANCES) -> float:
    """W2^2 (mean over modes) of Euler sampling of the probability-flow equation."""
    sigmas = np.append(sigma_at(np.asarray(timesteps)), 0.0)
    scale = np.full_like(variances, sigmas[0])
    for a, b in itertools.pairwise(sigmas):
        shrink = variances / (variances + a * a)
        scale = scale * (shrink + b / a * (1 - shrink))
    return float(np.mean((scale - np.sqrt(variances)) ** 2))
