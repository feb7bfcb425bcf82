r"""Scores of cache policies from what calibrate recorded; no network evaluation.

Let h_{t,b} be the hidden state at block boundary b of step t, and g_b = h_{t,b} - h_{t-l,b} its
change over the last l steps. Reusing the blocks [a, b) at step t with the change stored at step
t - l puts h_{t,a} + (h_{t-l,b} - h_{t-l,a}) where h_{t,b} should be: an error of g_a - g_b, hence

    E_{t,l}[a, b] = || g_b - g_a ||^2 = B_bb + B_aa - 2 B_ab,      B[a, b] = <g_a, g_b>,

so one small Gram matrix per step and lag gives the error of every range. What an error at step t
does to the finished video is the sampler's business, the importance w_t of `step_importance`. Steps
that reuse one stored change share its error, which only grows, so within such a run amplitudes add;
what the next computed step stores is another change, so runs add as squares:

    score = sum over runs of (sum over the run's steps of sqrt(w_t E_t))^2.

It prunes; sampling decides. How well it ranks policies is measured by `python -m benchmarks
predictor`, beside the number of skipped blocks, and by every search-cache run on what it sampled.
This form was chosen on 80 policies of the bundled model, three prompts that nothing is judged by
(rank correlation within 1.3x, 1.5x and 2x, and over all: .88, .86, .79, .90; with the amplitudes of
all steps added .88, .81, .69, .85; so with all steps alike in weight .59, .39, .63, .77, and with
weights read off single reuses at ten steps .49, .47, .68, .76; skipped blocks .07, .34, .57, .68).

Suffixes: P videos, S steps of the policy's schedule, K calibration levels, G recorded lags,
L lags 1..L, B boundaries (blocks + 1), I intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from osp_opt.base.errors import CalibrationError
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration import Calibration
from osp_opt.pipelines.experts import first_below
from osp_opt.quality.metrics import log_error

__all__ = [
    "ReuseErrors",
    "four_field_scores",
    "gaussian_importance",
    "policy_score",
    "range_errors",
    "step_importance",
]

FloatArray = npt.NDArray[np.float64]


def range_errors(gram: np.ndarray) -> np.ndarray:
    """E[..., a, b] = B_bb + B_aa - 2 B_ab of Gram matrices [..., B, B], clipped at 0."""
    own = np.diagonal(gram, axis1=-2, axis2=-1)
    return np.maximum(own[..., :, None] + own[..., None, :] - 2.0 * gram, 0.0)


@dataclass(frozen=True)
class ReuseErrors:
    """Mean squared errors of reuse for one schedule: table [P, S, L, B, B], lag l at index l - 1.

    Entries of lags that reach before the first step are 0 and of no use. Those of lags that reach
    across the boundary of two transformers are infinite: nothing may be reused there. first_step
    is the first of the second one; 0 where there is one only.
    """

    table: np.ndarray
    first_step: int = 0

    @property
    def num_steps(self) -> int:
        return self.table.shape[1]

    @property
    def num_blocks(self) -> int:
        return self.table.shape[-1] - 1

    @property
    def max_lag(self) -> int:
        return self.table.shape[2]

    @classmethod
    def of(
        cls,
        calibration: Calibration,
        timesteps: Sequence[float],
        max_lag: int,
        *,
        guided: bool = True,
    ) -> ReuseErrors:
        """For a schedule, which may differ from the calibration's.

        `guided` takes the change of the two branches combined as guidance combines them, which is
        what the sampler sees; else their plain mean.

        A step of the schedule is read at the nearest recorded level, a lag as the distance between
        the two steps in recorded levels; between and beyond the recorded lags the error follows a
        power law of the distance, with the exponent of the two nearest recorded lags (within 0 and
        2: a change neither shrinks with distance nor grows faster than a steady drift).
        Raises CalibrationError when nothing usable was recorded.
        """
        grams = calibration.guided_block_gram if guided else calibration.block_gram
        levels = np.arange(len(calibration.timesteps), dtype=np.float64)
        # np.interp wants ascending abscissae; timesteps descend.
        places = np.interp(
            np.asarray(timesteps, np.float64), calibration.timesteps[::-1], levels[::-1]
        )
        recorded = _recorded_errors(grams, calibration)
        first = first_below(calibration.timesteps.tolist(), calibration.boundary)
        first_step = first_below(timesteps, calibration.boundary)
        p, _, _, b, _ = grams.shape
        table = np.zeros((p, len(places), max_lag, b, b), dtype=np.float32)
        for step in range(len(places)):
            level = round(float(places[step]))
            level = min(level, first - 1) if step < first_step else max(level, first)
            for lag in range(1, min(max_lag, step) + 1):
                if step - lag < first_step <= step:
                    table[:, step, lag - 1] = np.inf
                    continue
                distance = places[step] - places[step - lag]
                table[:, step, lag - 1] = _at_distance(
                    recorded[:, level], calibration.lags, float(distance)
                )
        return cls(table, first_step)

    def of_reuse(
        self, step: int, lag: int, blocks: tuple[int, int], spacing: int | None = None
    ) -> np.ndarray:
        """Squared error [P] of reusing `blocks` at `step` with a change `lag` steps old.

        With `spacing` m, of the linear forecast from that change d_l and the one m steps before:
        d - d_l - (l/m) (d_l - d_{l+m}). Its square needs no more than errors of plain reuse,

            E_l(t) + (l/m)^2 E_m(t-l) - (l/m) (E_{l+m}(t) - E_l(t) - E_m(t-l)),

        kept above a hundredth of E_l, since unrecorded lags are interpolated.
        """
        a, b = blocks
        plain: np.ndarray = self.table[:, step, lag - 1, a, b].astype(np.float64)
        if spacing is None:
            return plain
        slope = lag / spacing
        before = self.table[:, step - lag, spacing - 1, a, b]
        both = self.table[:, step, lag + spacing - 1, a, b]
        if not np.all(np.isfinite(both)):
            return np.full_like(plain, np.inf)
        forecast = plain + slope**2 * before - slope * (both - plain - before)
        return np.maximum(forecast, 0.01 * plain)


def _recorded_errors(grams: np.ndarray, calibration: Calibration) -> np.ndarray:
    """Range errors [P, K, G, B, B]; a level too early for a lag borrows from the first that is, as
    does one whose change reaches back to another transformer.
    """
    lags = calibration.lags
    errors = range_errors(grams.astype(np.float64))
    first = first_below(calibration.timesteps.tolist(), calibration.boundary)
    for g in range(len(lags)):
        if first:
            errors[:, first : first + lags[g], g] = np.nan
        known = np.flatnonzero(np.isfinite(errors[:, :, g]).all(axis=(0, 2, 3)))
        if not len(known):
            raise CalibrationError(
                f"calibration: no change over {lags[g]} steps was recorded; run osp-opt calibrate"
            )
        nearest = known[np.abs(known[None] - np.arange(errors.shape[1])[:, None]).argmin(1)]
        errors[:, :, g] = errors[:, nearest, g]
    return errors


def _at_distance(errors_PGBB: np.ndarray, lags: tuple[int, ...], distance: float) -> np.ndarray:
    if distance in lags:
        exact: np.ndarray = errors_PGBB[:, lags.index(int(distance))]
        return exact
    if len(lags) == 1:
        return errors_PGBB[:, 0] * (distance / lags[0])
    upper = int(np.clip(np.searchsorted(lags, distance), 1, len(lags) - 1))
    near, far = errors_PGBB[:, upper - 1], errors_PGBB[:, upper]
    span = np.log(lags[upper] / lags[upper - 1])
    power = np.clip((log_error(far) - log_error(near)) / span, 0.0, 2.0)
    scaled: np.ndarray = near * (distance / lags[upper - 1]) ** power
    return scaled


def step_importance(
    sigmas: Sequence[float] | FloatArray, c: float, *, ancestral: bool = True
) -> FloatArray:
    r"""How much a squared error of the noise prediction at each step adds to the result's, [S].

    A step from s_i to s_{i+1} is x_{i+1} = D + r (x_i - D) + noise with r = (s_{i+1}/s_i)^2 (the
    ancestral step; without the square for deterministic ones), and D = x - s_i eps. So an error
    d eps enters x_{i+1} as s_i (1 - r_i) d eps. Later steps shrink it by r_j + (1 - r_j) k_j, where
    k = dD/dx = c^2 / (c^2 + s^2) is the slope of the best denoiser of Gaussian data of standard
    deviation c (Karras et al. 2022, arXiv 2206.00364, appendix B.3).

    Weights measured by single steps of reuse on one video ranked policies worse (see above): one
    video tips over at one step or another, and ten of them say more of that video than of steps.

    sigmas: [S + 1], descending, the last one 0.
    """
    s = np.asarray(sigmas, dtype=np.float64)
    ratio = (s[1:] / s[:-1]) ** (2 if ancestral else 1)
    slope = c * c / (c * c + s[:-1] ** 2)
    passed = ratio + (1.0 - ratio) * slope
    after = np.append(np.cumprod(passed[:0:-1])[::-1], 1.0)
    weight: FloatArray = np.square(s[:-1] * (1.0 - ratio) * after)
    return weight


def gaussian_importance(
    calibration: Calibration, timesteps: Sequence[float], *, ancestral: bool = True
) -> FloatArray:
    """`step_importance` of a schedule for data of the calibrated videos' size, [S]."""
    sigmas = np.append(calibration.scale.sigmas(np.asarray(timesteps, np.float64)), 0.0)
    return step_importance(sigmas, calibration.data_scale, ancestral=ancestral)


def four_field_scores(
    errors: ReuseErrors, importance_S: np.ndarray, intervals: Sequence[int]
) -> np.ndarray:
    """Scores of every four-field policy, [I, S, B, B] by (interval, step start, start, end).

    The geometric mean over videos: one video in eight carries 40 % of a plain mean. Entries with
    end <= start mean nothing. An interval i needs the lags 1..i-1.
    """
    p, s, _, b, _ = errors.table.shape
    weighted = np.sqrt(errors.table * importance_S[None, :, None, None, None])
    scores = np.zeros((len(intervals), s, b, b))
    for i, interval in enumerate(intervals):
        # Over the runs behind `start`: its own, then all that the next start has.
        total = np.zeros((p, s + interval, b, b))
        for start in range(s - 1, -1, -1):
            run = np.zeros((p, b, b))
            for lag in range(1, min(interval, s - start)):
                run += weighted[:, start + lag, lag - 1]
            total[:, start] = total[:, start + interval] + run**2
        scores[i] = _over_videos(total[:, :s])
    return scores


def policy_score(policy: CachePolicy, errors: ReuseErrors, importance_S: np.ndarray) -> float:
    """The score of any policy.

    Equals the entry of `four_field_scores` for a four-field policy. Raises CalibrationError when a
    reused change is older than the errors reach.
    """
    runs: dict[int, np.ndarray] = {}  # amplitudes by the step whose change is reused
    stored: dict[tuple[int, int], list[int]] = {}  # newest first
    for step in range(errors.num_steps):
        for blocks in policy.reuse_ranges(step):
            source, *older = policy.usable(step, stored[blocks])
            lag = step - source
            if lag > errors.max_lag:
                raise CalibrationError(
                    f"a change {lag} steps old was scored up to {errors.max_lag}"
                )
            spacing = source - older[0] if older else None
            if spacing is not None and lag + spacing > errors.max_lag:
                spacing = None
            error = errors.of_reuse(step, lag, blocks, spacing)
            runs[source] = runs.get(source, 0.0) + np.sqrt(importance_S[step] * error)
        for blocks in policy.store_ranges(step):
            stored[blocks] = policy.kept([step, *stored.get(blocks, ())])
    total = np.zeros(errors.table.shape[0])
    for run in runs.values():
        total += run**2
    return float(_over_videos(total))


def _over_videos(squares: np.ndarray) -> np.ndarray:
    """The geometric mean over the first axis, videos."""
    score: np.ndarray = np.exp(log_error(squares).mean(axis=0))
    return score
