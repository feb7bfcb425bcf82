"""On the golden transformer: the policy equals a separate implementation, bit for bit.

The separate implementation replaces a torch module by another one, as caches for closed models
do. cache-dit 1.5.3 (DBCache: Fn = start, Bn = N - start - num, a static mask of steps) was compared
by hand with the same cases: difference 0.0 over 12 steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from osp_opt.cache.hooks import apply_cache
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.model.transformer import OpenSoraT2V

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer"
STEPS = 12
POLICIES = [(1, 2, 3, 2), (1, 1, 0, 3), (2, 1, 5, 4), (0, 4, 1, 5)]


@pytest.fixture
def model() -> Iterator[OpenSoraT2V]:
    with torch.no_grad():
        yield OpenSoraT2V.from_pretrained(GOLDEN / "main").eval()


def inputs(step: int) -> dict[str, Tensor]:
    case = load_file(GOLDEN / "case_a_video.safetensors")
    like = case["in.hidden_states"]
    return {
        "hidden_states": torch.randn(like.shape, generator=torch.Generator().manual_seed(step)),
        "timestep": torch.full((len(like),), 999.0 - 70 * step),
        "encoder_hidden_states": case["in.encoder_hidden_states"],
        "encoder_attention_mask": case["in.encoder_attention_mask"],
    }


class Replacement(nn.Module):
    """Stands for a whole range of blocks: runs them, or adds what they last changed."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.use_change = False
        self.change: Tensor | None = None

    def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
        if self.use_change:
            return hidden_states + self.change
        x = hidden_states
        for block in self.blocks:
            x = block(x, **kwargs)
        self.change = x - hidden_states
        return x


def by_replacement(model: OpenSoraT2V, fields: tuple[int, int, int, int]) -> list[Tensor]:
    start, count, step_start, interval = fields
    blocks = list(model.transformer_blocks)
    stand_in = Replacement(blocks[start : start + count])
    model.transformer_blocks = nn.ModuleList([*blocks[:start], stand_in, *blocks[start + count :]])
    outputs = []
    for step in range(STEPS):
        # The golden file's rule, for a start that refreshes: later steps reuse off the interval.
        stand_in.use_change = step > step_start and (step - step_start) % interval != 0
        outputs.append(model(**inputs(step)).sample)
    return outputs


@pytest.mark.parametrize("fields", POLICIES)
def test_equals_a_separate_implementation(
    model: OpenSoraT2V, fields: tuple[int, int, int, int]
) -> None:
    policy = CachePolicy.four_field(*fields)
    cache = BlockCache(policy)
    ours = [model(**inputs(step), blocks=cache.at(step)).sample for step in range(STEPS)]
    handle = apply_cache(model, policy, num_steps=STEPS)
    hooked = []
    for step in range(STEPS):
        with handle.at(step):
            hooked.append(model(**inputs(step)).sample)
    handle.remove()
    plain = [model(**inputs(step)).sample for step in range(STEPS)]
    reused = [step for step in range(STEPS) if policy.reuse_ranges(step)]
    assert reused
    assert [s for s in range(STEPS) if not torch.equal(ours[s], plain[s])] == reused
    theirs = by_replacement(model, fields)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(ours, hooked, strict=True))


def test_separate_branches_equal_one_batch(model: OpenSoraT2V) -> None:
    policy = CachePolicy.four_field(1, 2, 1, 3)
    together, apart = BlockCache(policy), BlockCache(policy)
    for step in range(6):
        given = inputs(step)
        both = model(**given, blocks=together.at(step)).sample
        for row, branch in enumerate(("negative", "positive")):
            one = {name: value[row : row + 1] for name, value in given.items()}
            alone = model(**one, blocks=apart.at(step, branch)).sample
            assert torch.allclose(alone, both[row : row + 1], atol=1e-5)
    assert together.memory_bytes() == apart.memory_bytes() > 0


def test_bfloat16_storage_stays_close(model: OpenSoraT2V) -> None:
    policy = CachePolicy.four_field(1, 2, 1, 3)
    exact, small = BlockCache(policy), BlockCache(policy, dtype=torch.bfloat16, offload=True)
    for step in range(6):
        a = model(**inputs(step), blocks=exact.at(step)).sample
        b = model(**inputs(step), blocks=small.at(step)).sample
        assert torch.allclose(a, b, atol=0.05)
    assert small.memory_bytes() * 2 == exact.memory_bytes()
