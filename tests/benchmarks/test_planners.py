"""The baselines re-implemented from papers, against brute force and against plain sampling."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from benchmarks.attention import AttentionReuse, share
from benchmarks.cache import against_curves
from benchmarks.guidance_cache import GuidanceCache, _split
from benchmarks.lab import Lab
from benchmarks.planners import LONGEST, least_cost, lexicographic_minimax, planned_policies
from benchmarks.size import quick_size
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy

STEPS = 8


def paths(count: int, first: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All sets of `count` computed steps that begin with `first` and skip few enough in a row."""
    rest = range(first[-1] + 1, STEPS)
    whole = ((*first, *more, STEPS) for more in combinations(rest, count - len(first)))
    return [path for path in whole if all(b - a <= LONGEST + 1 for a, b in pairwise(path))]


@pytest.mark.parametrize("count", [3, 5, 8])
def test_lexicographic_minimax_is_that_of_all_paths(count: int) -> None:
    # Few different weights, so that largest ones tie and the next ones decide.
    weights = np.random.default_rng(count).integers(1, 4, (STEPS, STEPS + 1)).astype(float)
    edges = {
        (i, j): 0.0 if j == i + 1 else float(weights[i, j])
        for i in range(STEPS)
        for j in range(i + 1, min(i + LONGEST + 1, STEPS) + 1)
    }

    def key(path: tuple[int, ...]) -> list[float]:
        return sorted((edges[edge] for edge in pairwise(path)), reverse=True)

    found = lexicographic_minimax(edges, STEPS, count)
    assert len(found) == count
    assert key((*found, STEPS)) == min(key(path) for path in paths(count, (0,)))


@pytest.mark.parametrize("count", [3, 5, 8])
def test_least_cost_is_that_of_all_paths(count: int) -> None:
    random = np.random.default_rng(count).random((STEPS, STEPS, STEPS + 1))
    costs = {
        (i, j, k): float(random[i, j, k])
        for i in range(STEPS)
        for j in range(i + 1, min(i + LONGEST + 1, STEPS - 1) + 1)
        for k in range(j + 1, min(j + LONGEST + 1, STEPS) + 1)
    }

    def total(path: tuple[int, ...]) -> float:
        return sum(costs[triple] for triple in zip(path, path[1:], path[2:], strict=False))

    found = least_cost(costs, STEPS, count)
    assert len(found) == count
    assert total((*found, STEPS)) == pytest.approx(min(total(p) for p in paths(count, (0, 1))))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    size = replace(quick_size(), steps=6)
    return Lab(tmp_path_factory.mktemp("lab"), size, seed=1, device="cpu")


def test_plans_do_the_work_that_was_asked_for(lab: Lab) -> None:
    request = lab.deciding(1)[0]
    for planner, target, policy in planned_policies(lab, (1.5, 2.0)):
        _, work = lab.counted(request, lab.reference, lab.block_cache(policy))
        assert lab.plain_work / work == pytest.approx(target), planner


def test_the_guidance_cache_without_its_weights_is_plain_reuse_of_the_difference(lab: Lab) -> None:
    request, steps = lab.deciding(1)[0], len(lab.reference)
    model = lab.maker.pipeline.transformer

    def made(interval: int, **weight: float) -> tuple[torch.Tensor, float]:
        runtime = GuidanceCache(model, steps, interval, **weight)
        return lab.counted(request, lab.reference, transformer=runtime)

    plain = lab.denoise(request, lab.reference).latents
    assert torch.equal(made(1)[0], plain)
    plan = GuidancePlan.every(3, steps, start=2, order=0)
    policy = CachePolicy.explicit({}, steps, guidance=plan)
    latents, work = lab.counted(request, lab.reference, lab.block_cache(policy))
    mine, own_work = made(3, weight=1.0)
    torch.testing.assert_close(mine, latents, atol=1e-5, rtol=1e-5)
    # Both branches at steps 0, 1, 2 and 5 of six, one at 3 and 4.
    assert work == own_work == pytest.approx(5 / 6 * lab.plain_work)
    assert not torch.equal(made(3)[0], mine)


def test_the_prototype_skips_self_attention_and_nothing_else(lab: Lab) -> None:
    request, model = lab.deciding(1)[0], lab.maker.pipeline.transformer
    plain = lab.denoise(request, lab.reference).latents
    never = AttentionReuse(model, 1, frozenset())
    assert torch.equal(lab.denoise(request, lab.reference, transformer=never).latents, plain)
    twice = AttentionReuse(model, 1, frozenset({2, 4}))
    made, work = lab.counted(request, lab.reference, transformer=twice)
    # Of the 14 width^2 that are counted for a token, projections of self-attention are 4.
    assert work / lab.plain_work == pytest.approx(1 - 2 / 6 * 4 / 14)
    again, _ = lab.counted(request, lab.reference, transformer=twice)
    assert torch.equal(again, made)  # nothing is left of the video before


def test_attention_is_most_of_a_block_where_there_are_many_tokens() -> None:
    # Of width^2 a token: 4 for its projections, 2 cross-attention, 8 feed-forward.
    assert share(1, 10_000, 1) == pytest.approx(4 / 14, rel=1e-3)
    assert share(86_400, 2304, 512) == pytest.approx(0.88, abs=0.005)


def test_frequencies_are_split_as_they_are() -> None:
    flat = torch.ones(1, 1, 1, 8, 8)
    board = torch.tensor([1.0, -1.0]).repeat(4) * torch.tensor([1.0, -1.0]).repeat(4)[:, None]
    low, high = _split(2.0 * flat + board)
    torch.testing.assert_close(low, 2.0 * flat)
    torch.testing.assert_close(high, board.expand_as(flat))


def test_a_curve_is_read_at_equal_work_and_never_beyond_its_end() -> None:
    points = [("theirs", 1.0, [50.0, 40.0]), ("theirs", 4.0, [30.0, 20.0])]
    found = against_curves(2.0, [45.0, 35.0], points)["theirs"]
    assert found["gain"]["estimate"] == pytest.approx(5.0)  # half-way in the logarithm: 40, 30
    assert against_curves(4.2, [45.0, 35.0], points)["theirs"]["gain"] is None
