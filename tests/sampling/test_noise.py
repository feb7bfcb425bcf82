"""Statistics of the coupled path, and that draws depend on (seed, prompt, place) alone."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from osp_opt.base.errors import OptionError, ScheduleError
from osp_opt.sampling.noise import (
    BatchNoise,
    CoupledNoise,
    GeneratorNoise,
    IndependentNoise,
    keyed_normal,
    make_noise,
    search_rng,
)
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of

N = 40_000  # draws per statistic; each tolerance below is at least 5 standard errors
FIVE_ERRORS = 5 / math.sqrt(N)


def steps_of(noise: CoupledNoise, sigmas: np.ndarray) -> torch.Tensor:
    """z of the initial noise and of every step: [n, N]."""
    rows = [noise.initial(noise.shape, float(sigmas[0]))]
    rows += [
        noise.step(i, float(a), float(b))
        for i, (a, b) in enumerate(itertools.pairwise(sigmas))
        if b > 0
    ]
    return torch.stack([row.flatten() for row in rows])


@pytest.mark.parametrize(
    "schedule",
    [
        TimestepSchedule.uniform(30),
        TimestepSchedule((999.0, 998.0, 997.2, 500.0, 499.2, 349.0, 348.0, 40.0, 1.0, 0.0)),
    ],
)
def test_disjoint_increments_are_independent_unit_normals(schedule: TimestepSchedule) -> None:
    z = steps_of(CoupledNoise(7, "a cat", (N,)), schedule.sigmas)
    covariance = (z @ z.T / N).double()
    torch.testing.assert_close(
        covariance, torch.eye(len(z), dtype=torch.float64), rtol=0, atol=1.5 * FIVE_ERRORS
    )
    assert z.mean(1).abs().max() < FIVE_ERRORS
    kurtosis = (z**4).mean(1)
    assert (kurtosis - 3).abs().max() < FIVE_ERRORS * math.sqrt(96)
    ordered = z[3].sort().values.double()
    normal = torch.special.ndtr(ordered)
    uniform = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    assert float((normal - uniform).abs().max()) < 2.2 / math.sqrt(N)  # Kolmogorov-Smirnov


def test_levels_are_one_path() -> None:
    """W(tau) rebuilt from different schedules agrees, and Cov(W_s, W_t) = min(s, t)."""
    noise = CoupledNoise(1, "path", (N,))
    coarse = TimestepSchedule((999.0, 600.0, 300.0, 100.0))
    fine = TimestepSchedule((999.0, 750.5, 600.0, 450.0, 300.0, 200.0, 123.4, 100.0))
    values = {}
    for schedule in (coarse, fine):
        z = steps_of(noise, schedule.sigmas)
        tau = 1 / schedule.sigmas[:-1] ** 2
        scale = torch.tensor(np.sqrt(np.diff(np.append(0.0, tau))), dtype=torch.float32)
        path = (z * scale[:, None]).cumsum(0)
        for t, row in zip(schedule.timesteps, path, strict=True):
            if t in values:
                torch.testing.assert_close(row, values[t], rtol=1e-3, atol=1e-3 * float(row.std()))
            values[t] = row
    times = sorted(values, reverse=True)
    tau = [1 / sigma_of(t) ** 2 for t in times]
    path = torch.stack([values[t] / math.sqrt(s) for t, s in zip(times, tau, strict=True)])
    want = [[math.sqrt(min(s, t) / max(s, t)) for s in tau] for t in tau]
    torch.testing.assert_close(
        path @ path.T / N, torch.tensor(want), rtol=0, atol=1.5 * FIVE_ERRORS
    )


def test_order_of_questions_does_not_matter() -> None:
    sigmas = TimestepSchedule.uniform(9).sigmas
    pairs = list(itertools.pairwise(sigmas))
    one, other = CoupledNoise(3, "p", (4, 2, 3, 3)), CoupledNoise(3, "p", (4, 2, 3, 3))
    forward = [one.step(i, a, b) for i, (a, b) in enumerate(pairs)]
    start = other.initial((4, 2, 3, 3))
    backward = [other.step(0, a, b) for a, b in reversed(pairs)][::-1]
    assert torch.equal(start, one.initial((4, 2, 3, 3)))
    assert all(torch.equal(x, y) for x, y in zip(forward, backward, strict=True))


def test_levels_inside_one_cell_still_give_unit_normals() -> None:
    noise = CoupledNoise(3, "close", (N,))
    for a, b in ((1.0, 0.9995), (20.0, 19.9999), (0.02, 0.01999)):
        z = noise.step(0, a, b)
        assert float(z.var()) == pytest.approx(1, abs=FIVE_ERRORS * math.sqrt(2))


def test_rounding_of_a_level_does_not_change_the_noise() -> None:
    noise = CoupledNoise(3, "round", (1000,))
    for a, b in zip(
        *(TimestepSchedule.uniform(40).sigmas[i : 39 + i] for i in (0, 1)), strict=True
    ):
        rough = noise.step(0, float(np.float32(a)), float(np.float32(b)))
        torch.testing.assert_close(noise.step(0, a, b), rough, rtol=0, atol=0.02)


def test_the_last_step_takes_no_noise() -> None:
    assert not CoupledNoise(0, "", (2, 3)).step(9, 0.01, 0.0).any()


def test_memory_does_not_grow_with_steps() -> None:
    noise = CoupledNoise(0, "", (3,))
    steps_of(noise, TimestepSchedule.uniform(300).sigmas)
    assert len(noise._nodes) <= 14


@pytest.mark.parametrize("sigma", [0.0, 0.001, 1000.0, math.nan, math.inf, -1.0])
def test_levels_off_the_path_are_refused(sigma: float) -> None:
    with pytest.raises(ScheduleError, match="noise level"):
        CoupledNoise(0, "", (3,)).initial((3,), sigma)


def test_levels_must_descend() -> None:
    noise = CoupledNoise(0, "", (3,))
    for a, b in ((1.0, 1.0), (1.0, 2.0)):
        with pytest.raises(ScheduleError, match="do not descend"):
            noise.step(0, a, b)


@pytest.mark.parametrize("kind", [CoupledNoise, IndependentNoise])
def test_seed_and_prompt_are_the_key(kind: type[CoupledNoise] | type[IndependentNoise]) -> None:
    def draws(seed: int, prompt: str) -> torch.Tensor:
        noise = kind(seed, prompt, (2000,))
        return torch.stack([noise.initial((2000,)), noise.step(4, 3.0, 2.0)])

    assert torch.equal(draws(1, "a"), draws(1, "a"))
    others = torch.cat([draws(1, "a"), draws(2, "a"), draws(1, "b"), draws(2**32 + 1, "a")])
    others = others.double()
    covariance = others @ others.T / 2000
    assert (covariance - torch.eye(8)).abs().max() < 7.5 / math.sqrt(2000)


def test_keys_with_the_same_32_bits_differ() -> None:
    """torch.Generator keeps 32 bits of its seed; keyed_normal must not."""
    drawn = [keyed_normal(f"key {i}", (64,)) for i in range(300)]
    starts = {tuple(row[:2].tolist()) for row in drawn}
    assert len(starts) == 300
    assert torch.equal(
        keyed_normal("\ud800 half a character", (8,)), keyed_normal("\ud800 half a character", (8,))
    )


def test_independent_steps_are_independent() -> None:
    noise = IndependentNoise(5, "p", (N,))
    z = torch.stack([noise.initial((N,)), *(noise.step(i, 2.0, 1.0) for i in range(4))])
    torch.testing.assert_close(z @ z.T / N, torch.eye(5), rtol=0, atol=1.5 * FIVE_ERRORS)


def test_generator_noise_draws_like_torch() -> None:
    noise = GeneratorNoise(torch.Generator().manual_seed(1), (2, 3), torch.bfloat16)
    want = torch.Generator().manual_seed(1)
    for got in (noise.initial((2, 3)), noise.step(0, 2.0, 1.0), noise.step(1, 1.0, 0.0)):
        assert got.dtype == torch.float32
        assert torch.equal(got, torch.randn(2, 3, generator=want, dtype=torch.bfloat16).float())
    several = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    batch = GeneratorNoise(several, (2, 3)).initial((2, 3))
    for row, seed in zip(batch, (1, 2), strict=True):
        alone = torch.randn(1, 3, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(row, alone[0])


def test_a_batch_is_its_videos() -> None:
    batch = make_noise("coupled", [1, 2], ["a", "b"], (4, 2, 2, 2))
    alone = CoupledNoise(2, "b", (4, 2, 2, 2))
    assert torch.equal(batch.initial((2, 4, 2, 2, 2))[1], alone.initial((4, 2, 2, 2)))
    assert torch.equal(batch.step(0, 3.0, 2.0)[1], alone.step(0, 3.0, 2.0))
    with pytest.raises(OptionError, match="noise for 2 videos, but 3"):
        batch.initial((3, 4, 2, 2, 2))


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(OptionError, match="coupled or independent"):
        make_noise("brown", [1], ["a"], (4,))
    with pytest.raises(OptionError, match="1 seeds for 2 prompts"):
        make_noise("coupled", [1], ["a", "b"], (4,))
    for noise in (CoupledNoise(0, "", (4,)), IndependentNoise(0, "", (4,))):
        with pytest.raises(OptionError, match="made for shape"):
            BatchNoise([noise]).initial((1, 5))


def test_generators_depend_on_seed_and_purpose_alone() -> None:
    first = search_rng(3, "ays", 1).random(4)
    search_rng(3, "other").random(100)
    np.testing.assert_array_equal(first, search_rng(3, "ays", 1).random(4))
    assert not np.array_equal(first, search_rng(3, "ays", 2).random(4))
    assert not np.array_equal(first, search_rng(4, "ays", 1).random(4))
