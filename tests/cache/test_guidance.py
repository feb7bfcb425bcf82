"""Guidance reuse: what a step without the negative branch computes, alone and with block reuse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from osp_opt.base.errors import OptionError, PolicyError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.export.cache_dit import cache_dit_arguments
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.sampling.denoiser import Conditions, GuidedDenoiser
from osp_opt.system.ranks import Layout, Workload, auto_layout, check_layout

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer"
SCALE = 3.0
STEPS = 9
BLOCKS = 3
NEGATIVE, POSITIVE = 2.0, 5.0  # what stands for the prompts' texts


def change(block: int, step: int, text: float) -> float:
    """What a block of the toy network adds: another thing for each block, step and text."""
    return (block + 1) * text + 0.1 * text**2 * step * (block + 1) + 0.01 * step**2


class Toy:
    """A network of blocks that add `change`; its timestep is the step. Counts what it runs."""

    dtype = torch.float64

    def __init__(self) -> None:
        self.rows_by_step: dict[int, int] = {}  # block evaluations, each row of a batch one

    def encode_text(self, embeds: Tensor, mask: Tensor) -> Tensor:
        return embeds

    def __call__(self, x: Tensor, time: Tensor, text: Any, blocks: Any, return_dict: bool) -> Any:
        step = int(time)

        def layer(index: int, h: Tensor) -> Tensor:
            self.rows_by_step[step] = self.rows_by_step.get(step, 0) + len(h)
            return h + torch.stack([torch.full_like(h[0], change(index, step, t)) for t in text])

        layers = [lambda h, i=i: layer(i, h) for i in range(BLOCKS)]
        return (blocks(layers, x),)


def run(
    policy: CachePolicy, sequential: bool, cache: BlockCache | None = None
) -> tuple[list[float], Toy]:
    """eps of every step of the toy, for latents that are 0."""
    toy = Toy()
    text = torch.tensor([POSITIVE], dtype=torch.float64)
    other = torch.tensor([NEGATIVE], dtype=torch.float64)
    conditions = Conditions.encode(toy, text, text, (other, other), sequential)
    denoiser = GuidedDenoiser(toy, conditions, SCALE, cache or BlockCache(policy))
    x = torch.zeros(1, 1, dtype=torch.float64)
    found = [
        float(denoiser.predict_noise(x, timestep=float(step), step=step)) for step in range(STEPS)
    ]
    return found, toy


def by_hand(policy: CachePolicy) -> list[float]:
    """The same in plain arithmetic: per branch what every block adds, then d, then eps."""
    full = {
        text: [[change(b, s, text) for b in range(BLOCKS)] for s in range(STEPS)]
        for text in (NEGATIVE, POSITIVE)
    }
    guidance = set(policy.guidance.steps) if policy.guidance else set()
    d_order = policy.guidance.order if policy.guidance else 0

    def line(points: list[tuple[int, float]], at: int, order: int) -> float:
        if order == 0 or len(points) == 1:
            return points[-1][1]
        (s0, v0), (s1, v1) = points[-2:]
        return v1 + (v1 - v0) * (at - s1) / (s1 - s0)

    def branch(step: int, text: float) -> float:
        total = 0.0
        skipped = {b for start, end in policy.plan[step] for b in range(start, end)}
        total += sum(full[text][step][b] for b in range(BLOCKS) if b not in skipped)
        for start, end in policy.plan[step]:
            known = [
                (s, sum(full[text][s][start:end]))
                for s in range(step)
                if (step in guidance or s not in guidance)
                and not any(a < end and start < z for a, z in policy.plan[s])
            ]
            total += line(known, step, policy.order)
        return total

    differences: list[tuple[int, float]] = []
    found = []
    for step in range(STEPS):
        positive = branch(step, POSITIVE)
        if step in guidance:
            d = line(differences, step, d_order)
        else:
            d = positive - branch(step, NEGATIVE)
            differences.append((step, d))
        found.append(positive + (SCALE - 1.0) * d)
    return found


PLANS: Sequence[CachePolicy] = [
    CachePolicy.explicit({}, STEPS, guidance=GuidancePlan((2, 4, 6, 8), order=0)),
    CachePolicy.explicit({}, STEPS, guidance=GuidancePlan((2, 4, 5, 7), order=1)),
    CachePolicy.explicit({}, STEPS, guidance=GuidancePlan.every(3, STEPS)),
    # Steps 3 and 5 run the positive branch in full; 4, 6 build on them, 8 runs both and must not.
    *(
        CachePolicy.explicit(
            {4: [(0, 3)], 6: [(0, 3)], 8: [(0, 3)]}, STEPS, order, GuidancePlan((3, 4, 5, 6), 1)
        )
        for order in (0, 1)
    ),
    CachePolicy.explicit(
        {2: [(0, 2)], 3: [(1, 3)], 6: [(0, 2)], 7: [(0, 2)]}, STEPS, 0, GuidancePlan((3, 5, 6), 1)
    ),
    CachePolicy.explicit(
        {3: [(0, 3)], 6: [(0, 3)], 8: [(0, 3)]}, STEPS, 1, GuidancePlan((3, 4, 7, 8), 0)
    ),
]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("policy", PLANS, ids=str)
def test_equals_plain_arithmetic(policy: CachePolicy, sequential: bool) -> None:
    found, toy = run(policy, sequential)
    assert found == pytest.approx(by_hand(policy), rel=1e-6)
    # and runs as many blocks as its speed-up says
    spent = sum(toy.rows_by_step.values())
    assert policy.speedup(BLOCKS, STEPS) == pytest.approx(2 * BLOCKS * STEPS / spent)


def test_a_linear_difference_is_forecast_exactly() -> None:
    """Of order 1; here d is linear in the step but for its square, which both branches share."""
    plain, _ = run(CachePolicy.explicit({}, STEPS), False)
    forecast, _ = run(PLANS[1], False)
    reused, _ = run(PLANS[0], False)
    assert forecast == pytest.approx(plain, rel=1e-6)
    assert max(abs(a - b) for a, b in zip(reused, plain, strict=True)) > 1.0


def test_reset_forgets_and_the_next_video_is_the_same() -> None:
    cache = BlockCache(PLANS[3])
    first, _ = run(PLANS[3], False, cache)
    cache.reset()
    assert run(PLANS[3], False, cache)[0] == first
    assert cache.guidance is not None
    cache.reset()
    with pytest.raises(PolicyError, match="step 5 reuses guidance: none stored"):
        cache.guidance.differences(5, [torch.zeros(1)])


@torch.no_grad()
def test_on_the_real_transformer_one_batch_equals_branches_in_turn() -> None:
    model = OpenSoraT2V.from_pretrained(GOLDEN / "main").eval()
    policy = CachePolicy.explicit(
        {2: [(1, 3)], 4: [(0, 2)]}, 6, 1, GuidancePlan((2, 3, 5), order=1)
    )
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, model.config.in_channels, 3, 8, 8, generator=generator)
    embeds = torch.randn(4, 5, model.config.caption_channels, generator=generator)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    results = []
    for sequential in (False, True):
        conditions = Conditions.encode(
            model, embeds[2:], mask[2:], (embeds[:2], mask[:2]), sequential
        )
        denoiser = GuidedDenoiser(model, conditions, 4.0, BlockCache(policy))
        results.append(
            torch.stack(
                [denoiser.predict_noise(x, timestep=900 - 150 * s, step=s) for s in range(6)]
            )
        )
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)


def test_without_guidance_there_is_nothing_to_reuse() -> None:
    toy = Toy()
    text = torch.tensor([POSITIVE], dtype=torch.float64)
    conditions = Conditions.encode(toy, text, text, None)
    with pytest.raises(PolicyError, match="reuses guidance, and guidance scale 1 has none"):
        GuidedDenoiser(toy, conditions, 1.0, BlockCache(PLANS[0]))


def test_ranks_that_hold_a_branch_each_have_nothing_to_save() -> None:
    work = Workload(heads=4, tokens=64, guided=True, items=1, one_branch_rests=True)
    with pytest.raises(OptionError, match="cfg=2 saves nothing by reusing guidance"):
        check_layout(Layout(cfg=2), work)
    assert auto_layout(2, work) == Layout(sp=2)
    assert auto_layout(2, Workload(4, 64, True, 1)) == Layout(cfg=2)
    toy = Toy()
    toy.parallel = SimpleNamespace(layout=Layout(cfg=2))  # type: ignore[attr-defined]
    text = torch.tensor([POSITIVE], dtype=torch.float64)
    conditions = Conditions.encode(toy, text, text, (text, text))
    with pytest.raises(PolicyError, match="on ranks of their own; use cfg=1"):
        GuidedDenoiser(toy, conditions, SCALE, BlockCache(PLANS[0]))


@pytest.mark.parametrize("policy", PLANS, ids=str)
def test_the_file_holds_it(policy: CachePolicy, tmp_path: Path) -> None:
    policy.save(tmp_path / "policy.json")
    assert CachePolicy.from_file(tmp_path / "policy.json") == policy
    with pytest.raises(PolicyError, match="reuses guidance"):
        cache_dit_arguments(policy, BLOCKS, STEPS)


@pytest.mark.parametrize(
    ("guidance", "said"),
    [
        ({"order": 1, "steps": [0, 2]}, "step 0 cannot reuse"),
        ({"order": 1, "steps": [3, 2]}, "must ascend"),
        ({"order": 1, "steps": [2, 2]}, "must ascend"),
        ({"order": 2, "steps": [2]}, "order is 2"),
        ({"order": True, "steps": [2]}, "order is True"),
        ({"order": 1, "steps": []}, "names no steps"),
        ({"order": 1, "steps": [2, 9]}, "step 9 is outside the 9 steps"),
        ({"order": 1, "steps": [2.0]}, "list of integers"),
        ({"order": 1, "steps": "23"}, "list of integers"),
        ({"steps": [2]}, "keys order and steps"),
        ({"order": 1, "steps": [2], "more": 1}, "keys order and steps"),
        (None, "keys order and steps"),
    ],
)
def test_what_is_no_plan_is_refused(guidance: Any, said: str) -> None:
    data = {**CachePolicy.explicit({}, STEPS).to_json(), "guidance": guidance}
    with pytest.raises(PolicyError, match=said):
        CachePolicy.from_json(data)
