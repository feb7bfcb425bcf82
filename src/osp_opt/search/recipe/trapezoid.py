r"""What an ancestral step misses, and how the next one makes up for most of it at no cost.

An ancestral step from i to j holds D_i where the prediction wanders on from D_i to D_j. Of ideal
predictions, posterior means on a noise path, nothing is known of that in advance (they are a
martingale in the clock tau = 1 / s^2), so no extrapolation helps. Afterwards much is: the mean of
a wandering path over an interval is about the middle of its ends, (D_i + D_j) / 2, and of the
square of what was missed three quarters are explained (a Brownian path's mean has variance 1/3
before its end is known and 1/12 after). So the step after j, which knows D_j, adds

    w_ij (D_j - D_i) / 2   times   r + (1 - r) k,   w = 1 - s_j^2 / s_i^2,

the second factor being what is left at its end of an error in x_j (r = 1 - w of that next step, k
the feedback of `coherent`). That is a corrected step (`steps.two_step`) with a weight of its own
at each level, and a schedule is best where trapezoids fit the recorded predictions best: a cost of
pairs of levels, so `plan_steps` finds it exactly.

On the bundled model (24 prompts that chose nothing, PSNR to 800 steps) the weights are .3 to .6 dB
better on even steps than a constant half of the two-step rule; on planned ones 12, 25, 33 and 50
steps have 34.7, 41.5, 43.6 and 46.5 dB, where levels planned for the constant and smoothed had
34.0, 40.9, 43.5 and 47.3. Suffix: K levels, noisiest first.
"""

from __future__ import annotations

import numpy as np

from osp_opt.sampling.levels import MAX_CORRECTION
from osp_opt.search.steps.coherent import DATA_SCALE, feedback
from osp_opt.search.steps.objectives import changes_upto, pathwise_cost, upper

__all__ = ["trapezoid_cost", "trapezoid_weights"]


def trapezoid_weights(sigmas: np.ndarray) -> tuple[float, ...]:
    """The corrections of a schedule by which each step makes up for the one before it, [n].

    `sigmas` descend and are above 0. As `correction_factors` takes them: multiples of the two-step
    rule's, at most MAX_CORRECTION. None at both ends, since nothing precedes the first step and the
    last returns its prediction.
    """
    length = np.log(sigmas[:-1] / sigmas[1:])
    taken = -np.expm1(-2.0 * length)  # w of the steps between the levels
    before, after = taken[:-1], taken[1:]
    left = 1.0 - after + after * feedback(sigmas[1:-1])
    weights = np.minimum(before * left / after * length[:-1] / length[1:], MAX_CORRECTION)
    return (0.0, *weights.tolist(), 0.0) if len(sigmas) > 1 else (0.0,)


def trapezoid_cost(changes_KK: np.ndarray, sigmas_K: np.ndarray) -> np.ndarray:
    r"""Mean square that a step leaves in the finished video once it is made up for, [K, K].

    With R the error of holding D_i, the trapezoid's is R - span (D_j - D_i) / 2, so

        |R|^2 - span <R, D_j - D_i> + span^2 |D_j - D_i|^2 / 4,

    all of it sums over the change table, over s_j^2 + c^2 squared: what the feedback leaves at the
    end of an error at s_j, of steps however short. A step to the last level, whose prediction is
    the video, is not made up for. Infinite where j <= i.
    """
    held = pathwise_cost(changes_KK, sigmas_K, p=0.0)
    clock = sigmas_K**-2.0
    upto = changes_upto(changes_KK, clock)
    from_own = upto - np.diagonal(upto)[:, None]  # [i, j]: over m in [i, j), against D_i
    from_next = (np.diagonal(upto)[:, None] - upto).T  # against D_j
    span = clock[None, :] - clock[:, None]
    along = 0.5 * (from_own - from_next + span * changes_KK)  # <R, D_j - D_i>
    made_up = (0.25 * span**2 * changes_KK - span * along) / np.square(clock)
    made_up[:, -1] = 0.0
    error = np.maximum(held + made_up, 0.0) / np.square(np.square(sigmas_K) + DATA_SCALE**2)
    return upper(error)
