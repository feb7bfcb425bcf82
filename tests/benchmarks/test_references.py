"""The re-implemented procedures of the reference tool, against what FACTS says of the real ones."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pytest
from gaussian_model import VARIANCES, ancestral_distance, sigma_at

from benchmarks.four_field import enumerated
from benchmarks.reference_cache import CacheSearch, least_blocks
from benchmarks.reference_steps import StepSearch, network_evaluations
from osp_opt.cache.policy import CachePolicy
from osp_opt.search.cache.candidates import MAX_INTERVAL


def test_its_formula_under_delivers() -> None:
    num = least_blocks(32, 100, 1.3)
    assert num == 15
    delivered = CachePolicy.four_field(1, num, 5, 2).speedup(32, 100)
    assert delivered == pytest.approx(3200 / (3200 - 47 * 15))
    assert round(delivered, 3) == 1.283


def test_its_cache_search_costs_63_generations() -> None:
    asked: list[CachePolicy] = []

    def measure(policies: Sequence[CachePolicy]) -> list[float]:
        asked.extend(policies)
        return [float(policy.to_json()["cache_block_start"]) for policy in policies]

    result = CacheSearch(32, 100, measure).search(least_blocks(32, 100, 1.3))
    assert (result.generations, round(result.equivalents)) == (63, 46)
    assert len(set(asked)) == len(asked) == 62
    assert result.policy.to_json()["cache_block_start"] == 1
    assert {policy.to_json()["cache_step_interval"] for policy in asked} == {2}


def test_its_second_stage_takes_the_best_starts_and_stays_inside_the_model() -> None:
    asked: list[CachePolicy] = []

    def measure(policies: Sequence[CachePolicy]) -> list[float]:
        asked.extend(policies)
        # The late starts are best; within a start, step start 0 with 8 blocks.
        fields = [policy.to_json() for policy in policies]
        return [
            100.0 - f["cache_block_start"] - (f["cache_num_blocks"] == 8) + f["cache_step_start"]
            for f in fields
        ]

    result = CacheSearch(12, 100, measure).search(6)
    second = [policy.to_json() for policy in asked[6:]]
    assert {fields["cache_block_start"] for fields in second} == {4, 5, 6}
    assert max(f["cache_block_start"] + f["cache_num_blocks"] for f in second) == 12
    assert result.policy == CachePolicy.four_field(6, 6, 0, 2)


def test_the_last_start_that_saves_the_work_is_found_for_every_interval_and_range() -> None:
    blocks, steps = 4, 12
    latest: dict[tuple[int, int, int], int] = {}
    for interval, a in product(range(2, MAX_INTERVAL + 1), range(blocks)):
        for num, first in product(range(1, blocks - a + 1), range(steps)):
            policy = CachePolicy.four_field(a, num, first, interval)
            if policy.speedup(blocks, steps) >= 1.3:
                latest[interval, a, num] = first
    found = enumerated(blocks, steps, 1.3)
    assert latest
    assert len(found) == len(latest)
    assert {(r.step_interval, r.block_start, r.num_blocks): r.step_start for r in found} == latest


def gaussian_search(num_steps: int, seed: int) -> tuple[float, int]:
    """W2^2 of the found schedule on the exactly solvable model, and the evaluations asked for."""
    rng = np.random.default_rng(seed)
    variances = VARIANCES[::10]
    clean = rng.normal(size=(5, len(variances))) * np.sqrt(variances)
    asked = 0

    def denoise(videos: Sequence[int], timesteps: Sequence[float]) -> np.ndarray:
        nonlocal asked
        asked += len(timesteps)
        sigma = sigma_at(np.array(timesteps))[:, None]
        noisy = clean[list(videos)] + sigma * rng.normal(size=(len(videos), len(variances)))
        return variances / (variances + sigma**2) * noisy

    schedule, made = StepSearch(denoise, 5, seed=seed).search(num_steps)
    assert made == asked
    assert (schedule.timesteps[0], schedule.timesteps[-1]) == (999.0, 0.0)
    return ancestral_distance(np.array(schedule.timesteps)), made


def test_its_step_search_costs_5280_and_is_worse_than_uniform() -> None:
    distance, made = gaussian_search(50, seed=0)
    assert made == network_evaluations(50) == 5280
    assert distance > ancestral_distance(np.linspace(999.0, 0.0, 50))


def test_its_short_schedules_are_worse_than_uniform_too() -> None:
    uniform = ancestral_distance(np.linspace(999.0, 0.0, 10))
    assert min(gaussian_search(10, seed)[0] for seed in range(3)) > uniform
