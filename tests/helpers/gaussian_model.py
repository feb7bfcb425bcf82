"""An exactly solvable model: independent Gaussian modes, for tests of step searches.

With data N(0, v) per mode the ideal denoiser is D(x, s) = v / (v + s^2) x, the sampler's output
is Gaussian, and its squared Wasserstein distance to the data is (sqrt(p) - sqrt(v))^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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
    for a, b in pairwise(sigmas):
        shrink = variances / (variances + a * a)
        kept = (b / a) ** 2
        power = power * (shrink + kept * (1 - shrink)) ** 2 + b * b * (1 - kept)
    return float(np.mean((np.sqrt(power) - np.sqrt(variances)) ** 2))


def deterministic_distance(timesteps: np.ndarray, variances: np.ndarray = VARIANCES) -> float:
    """W2^2 (mean over modes) of Euler sampling of the probability-flow equation."""
    sigmas = np.append(sigma_at(np.asarray(timesteps)), 0.0)
    scale = np.full_like(variances, sigmas[0])
    for a, b in pairwise(sigmas):
        shrink = variances / (variances + a * a)
        scale = scale * (shrink + b / a * (1 - shrink))
    return float(np.mean((scale - np.sqrt(variances)) ** 2))


def multistep_result(timesteps: np.ndarray, variances: np.ndarray = VARIANCES) -> np.ndarray:
    """Factor per mode by which DPM-Solver++ (2M) scales unit noise of the start to its result.

    Lu et al. 2022 (arXiv 2211.01095, algorithm 2), whose log-SNR is -log s here; the first step
    and the last (to s = 0) are of first order.
    """
    sigmas = np.append(sigma_at(np.asarray(timesteps)), 0.0)
    x = np.full_like(variances, sigmas[0])
    before: tuple[np.ndarray, float] | None = None
    for a, b in pairwise(sigmas):
        denoised = variances / (variances + a * a) * x
        used = denoised
        if before is not None and b > 0.0:
            ratio = before[1] / np.log(a / b)
            used = denoised + (denoised - before[0]) / (2 * ratio)
        x = used + b / a * (x - used)
        if b > 0.0:
            before = denoised, float(np.log(a / b))
    return x


def multistep_distance(timesteps: np.ndarray, variances: np.ndarray = VARIANCES) -> float:
    """W2^2 (mean over modes) of DPM-Solver++ (2M) on descending `timesteps`."""
    found = multistep_result(timesteps, variances)
    return float(np.mean((found - np.sqrt(variances)) ** 2))


def coupled_error(
    timesteps: np.ndarray,
    reference: np.ndarray,
    variances: np.ndarray = VARIANCES[::20],
    correction: float | Sequence[float] = 0.0,
) -> float:
    """Mean squared difference of two ancestral runs on one noise path, exactly.

    In y = x / s^2 with clock tau = 1 / s^2 every step is y += D dtau + dW: the result is linear in
    the path's increments over the levels of both runs, so its coefficients say everything. With a
    `correction` the steps of `timesteps`, but the first and the last, hold
    D + correction h / (2 h_before) (D - D_before), h in log s; it may be given for every step.
    """
    weights = np.broadcast_to(correction, len(timesteps))
    levels = np.unique(np.concatenate([timesteps, reference]))[::-1]
    sigmas = sigma_at(levels)
    tau = 1.0 / sigmas**2

    def coefficients(own: np.ndarray) -> np.ndarray:
        places = [int(np.flatnonzero(levels == t)[0]) for t in own]
        result = np.ones((len(levels), len(variances)))
        for a, b in pairwise(places):
            gain = variances / (variances + sigmas[a] ** 2) * sigmas[a] ** 2
            result[: a + 1] *= 1.0 + gain * (tau[b] - tau[a])
        last = sigmas[places[-1]] ** 2
        return result * variances / (variances + last) * last

    def corrected(own: np.ndarray) -> np.ndarray:
        places = [int(np.flatnonzero(levels == t)[0]) for t in own]
        y = np.zeros((len(levels), len(variances)))  # coefficients of the increments known so far
        y[: places[0] + 1] = 1.0
        before: tuple[np.ndarray, float] | None = None
        for weight, (a, b) in zip(weights, pairwise(places), strict=False):
            s2 = sigmas[a] ** 2
            denoised = held = variances / (variances + s2) * s2 * y
            h = float(np.log(sigmas[a] / sigmas[b]))
            if before is not None:
                held = denoised + weight * h / (2 * before[1]) * (denoised - before[0])
            before = denoised, h
            y = y + held * (tau[b] - tau[a])
            y[a + 1 : b + 1] += 1.0
        last = sigmas[places[-1]] ** 2
        return y * variances / (variances + last) * last

    own = corrected(timesteps) if weights.any() else coefficients(timesteps)
    difference = own - coefficients(reference)
    return float(np.mean(np.diff(tau, prepend=0.0) @ difference**2))
