"""Scores of cache policies against brute force, a recorded model and the exact Gaussian sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from osp_opt.base.errors import CalibrationError
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.calibration import Calibration
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.pipelines.maker import Request
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.cache.check import spearman
from osp_opt.search.cache.scores import (
    ReuseErrors,
    four_field_scores,
    policy_score,
    range_errors,
    step_importance,
)

STEPS, BLOCKS, VIDEOS, LAGS = 9, 4, 2, (1, 2, 3)


def layers() -> list[nn.Module]:
    torch.manual_seed(3)
    return [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(BLOCKS)]


def inputs(video: int) -> list[Tensor]:
    """A random walk: one hidden state [2 branches, tokens, width] per step."""
    generator = torch.Generator().manual_seed(video)
    moves = torch.randn(STEPS, 2, 7, 6, generator=generator) * 0.3
    return list(moves.cumsum(0))


@torch.no_grad()
def recorded() -> Calibration:
    schedule = TimestepSchedule.uniform(STEPS)
    parts = []
    for video in range(VIDEOS):
        recorder = CalibrationRecorder(STEPS, BLOCKS, guidance_scale=2.0, lags=LAGS)
        for step, x in enumerate(inputs(video)):
            recorder.record_denoised(step, recorder.at(step)(layers(), x)[:1])
        parts.append(
            Calibration.of_video(
                recorder.result(),
                schedule=schedule,
                lags=LAGS,
                request=Request(f"video {video}", video),
                metadata={},
            )
        )
    return Calibration.merge(parts)


@torch.no_grad()
@pytest.mark.parametrize(
    ("start", "end", "step", "lag"), [(0, 4, 3, 1), (1, 3, 7, 2), (2, 3, 8, 3)]
)
def test_a_range_error_is_what_reusing_it_really_does(
    start: int, end: int, step: int, lag: int
) -> None:
    """The hidden state behind the range, with a real BlockCache against without."""
    calibration = recorded()
    mean = ReuseErrors.of(calibration, calibration.timesteps, max(LAGS), guided=False)
    policy = CachePolicy.explicit(
        {t: [(start, end)] for t in range(step - lag + 1, step + 1)}, STEPS
    )
    for video in range(VIDEOS):
        cache = BlockCache(policy)
        for t, x in enumerate(inputs(video)[: step + 1]):
            cached = cache.at(t)([*layers()[:end], *[nn.Identity()] * (BLOCKS - end)], x)
        exact = inputs(video)[step]
        for layer in layers()[:end]:
            exact = layer(exact)
        error = (cached - exact).square().mean().item()
        assert mean.table[video, step, lag - 1, start, end] == pytest.approx(error, rel=1e-3)


def test_four_field_scores_equal_the_sum_over_the_policys_steps() -> None:
    calibration = recorded()
    errors = ReuseErrors.of(calibration, calibration.timesteps, max(LAGS))
    importance = np.linspace(2.0, 0.5, STEPS)
    scores = four_field_scores(errors, importance, intervals=(2, 3, 4))
    for i, interval in enumerate((2, 3, 4)):
        for step_start in range(STEPS - 1):
            for start, end in ((0, 4), (1, 3), (3, 4)):
                policy = CachePolicy.four_field(start, end - start, step_start, interval)
                expected = policy_score(policy, errors, importance)
                assert scores[i, step_start, start, end] == pytest.approx(expected, rel=1e-4)
    once = CachePolicy.four_field(1, 2, 2, 3)  # steps 3 and 4 reuse step 2, 6 and 7 step 5
    assert STEPS == 9
    by_hand = 0.0
    for run in ((3, 4), (6, 7)):
        amplitude = sum(
            np.sqrt(importance[t] * errors.table[:, t, lag, 1, 3]) for lag, t in enumerate(run)
        )
        by_hand = by_hand + amplitude**2
    expected = np.exp(np.log(by_hand).mean())
    assert policy_score(once, errors, importance) == pytest.approx(expected, rel=1e-5)
    plan = CachePolicy.explicit({4: [(0, 2)], 5: [(1, 3)]}, STEPS)
    amplitude = np.sqrt(importance[4] * errors.table[:, 4, 0, 0, 2]) + np.sqrt(
        importance[5] * errors.table[:, 5, 1, 1, 3]  # block 1 was reused at step 4: change of 3
    )
    assert policy_score(plan, errors, importance) == pytest.approx(
        np.exp(np.log(amplitude**2).mean()), rel=1e-5
    )


def walk_grams(growth: float, steps: int, lags: tuple[int, ...]) -> Calibration:
    """Two boundaries whose difference drifts: E over a lag is lag ** growth, at every step."""
    gram = np.full((1, steps, len(lags), 2, 2), np.nan, dtype=np.float32)
    for g, lag in enumerate(lags):
        gram[:, lag:, g] = [[0.0, 0.0], [0.0, float(lag) ** growth]]
    return Calibration(
        np.linspace(999.0, 0.0, steps),
        np.geomspace(100.0, 0.01, steps),
        np.ones((1, steps, steps)),
        gram,
        gram,
        lags,
        ("p",),
        (0,),
    )


@pytest.mark.parametrize("growth", [0.5, 1.0, 2.0])
def test_lags_and_schedules_that_were_not_recorded_follow_the_recorded_growth(
    growth: float,
) -> None:
    calibration = walk_grams(growth, 21, (1, 2))
    same = ReuseErrors.of(calibration, calibration.timesteps, 6)
    for lag in range(1, 7):
        assert same.table[0, 10, lag - 1, 0, 1] == pytest.approx(lag**growth, rel=1e-5)
    half = ReuseErrors.of(calibration, calibration.timesteps[::2], 3)
    assert half.num_steps == 11
    for lag in range(1, 4):
        assert half.table[0, 5, lag - 1, 0, 1] == pytest.approx((2 * lag) ** growth, rel=1e-5)


def test_nothing_recorded_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="over 3 steps"):
        ReuseErrors.of(walk_grams(1.0, 3, (1, 3)), [999.0, 0.0], 1)


def test_importance_is_exact_for_a_gaussian() -> None:
    """Perturb the noise prediction of one step of the exact sampler; see what reaches the end."""
    c, sigmas = 0.7, TimestepSchedule.uniform(12).sigmas

    def final(perturbed: int, ancestral: bool) -> float:
        x = sigmas[0]
        for i in range(12):
            s, t = sigmas[i], sigmas[i + 1]
            eps = (x - x * c * c / (c * c + s * s)) / s + (1e-4 if i == perturbed else 0.0)
            denoised = x - s * eps
            r = (t / s) ** (2 if ancestral else 1)
            x = denoised + r * (x - denoised)
        return float(x)

    for ancestral in (True, False):
        importance = step_importance(sigmas, c, ancestral=ancestral)
        for step in range(12):
            moved = (final(step, ancestral) - final(-1, ancestral)) / 1e-4
            assert importance[step] == pytest.approx(moved**2, rel=1e-6)


def test_small_helpers() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 5]) == pytest.approx(-0.2)
    assert spearman([1, 2, 2, 3], [1, 2, 2, 3]) == pytest.approx(1.0)
    assert spearman([1, 2, 2, 4], [4, 3, 1, 2]) == pytest.approx(
        -0.6324555
    )  # mean ranks 1 2.5 2.5 4
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3]))
    vectors = np.random.default_rng(0).normal(size=(5, 9))
    errors = range_errors(vectors @ vectors.T)
    expected = ((vectors[:, None] - vectors[None]) ** 2).sum(-1)
    assert errors == pytest.approx(expected, abs=1e-9)
    assert recorded().data_scale > 0
