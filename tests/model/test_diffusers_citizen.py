"""The transformer among diffusers' own tools: saving, caches, compilation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    apply_first_block_cache,
)
from diffusers.hooks._helpers import TransformerBlockRegistry
from torch import Tensor

from osp_opt.model.release import load_transformer
from osp_opt.model.transformer import OpenSoraBlock, OpenSoraT2V

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer"
TIMESTEPS = (999.0, 998.5, 998.0, 997.5, 300.0)


class Counted:
    """A model, a prompt, latents, and how often each block's self-attention has run."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = load_transformer(GOLDEN / "main")
        self.latents = torch.randn(2, 4, 2, 4, 6)
        self.embeds = torch.randn(2, 5, 32)
        self.runs = [0] * len(self.model.transformer_blocks)
        for index, block in enumerate(self.model.transformer_blocks):
            block.attn1.to_q.register_forward_hook(lambda *_, i=index: self._count(i))

    def _count(self, index: int) -> None:
        self.runs[index] += 1

    @torch.no_grad()
    def sample(self, timestep: float, context: str = "both") -> Tensor:
        with self.model.cache_context(context):
            return self.model(self.latents, torch.tensor(timestep), self.embeds).sample


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_first_block_cache_skips_the_other_blocks(counted: Counted) -> None:
    exact = [counted.sample(t) for t in TIMESTEPS]
    counted.runs[:] = [0] * 4
    # The first block's residual changes by 0.05 of itself, at the last step by 0.4.
    counted.model.enable_cache(FirstBlockCacheConfig(threshold=0.2))
    cached = [counted.sample(t) for t in TIMESTEPS]
    assert counted.runs == [5, 2, 2, 2]
    equal = [torch.equal(a, b) for a, b in zip(cached, exact, strict=True)]
    assert equal == [True, False, False, False, True]
    counted.model.disable_cache()
    assert torch.equal(counted.sample(TIMESTEPS[1]), exact[1])


def test_first_block_cache_that_never_fires_is_exact(counted: Counted) -> None:
    exact = [Counted().sample(t) for t in TIMESTEPS]
    apply_first_block_cache(counted.model, FirstBlockCacheConfig(threshold=0.0))
    assert all(
        torch.equal(counted.sample(t), expected)
        for t, expected in zip(TIMESTEPS, exact, strict=True)
    )


def test_cache_contexts_are_separate(counted: Counted) -> None:
    counted.model.enable_cache(FirstBlockCacheConfig(threshold=0.05))
    counted.sample(999.0, "cond")
    counted.sample(999.0, "uncond")
    assert counted.runs == [2, 2, 2, 2]


def test_mag_cache_and_attention_broadcast_run(counted: Counted) -> None:
    counted.model.enable_cache(MagCacheConfig(num_inference_steps=5, mag_ratios=[1.0] * 5))
    for timestep in TIMESTEPS:
        counted.sample(timestep)
    assert counted.runs[3] < len(TIMESTEPS)
    counted.model.disable_cache()
    counted.runs[:] = [0] * 4
    counted.model.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            cross_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(0, 1000),
            cross_attention_timestep_skip_range=(0, 1000),
            current_timestep_callback=lambda: 500,
        )
    )
    for timestep in TIMESTEPS:
        counted.sample(timestep)
    assert counted.runs == [3, 3, 3, 3]


class InsteadOfTheBlocks(torch.nn.Module):
    """What cache-dit puts in place of the block list: runs all with the first one's arguments."""

    def __init__(self, blocks: torch.nn.ModuleList) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        for block in self.blocks:
            hidden_states = block(hidden_states, *args, **kwargs)
        return hidden_states


def test_every_block_takes_the_same_arguments(counted: Counted) -> None:
    expected = counted.sample(500.5)
    stand_in = InsteadOfTheBlocks(counted.model.transformer_blocks)
    counted.model.transformer_blocks = torch.nn.ModuleList([stand_in])
    assert torch.equal(counted.sample(500.5), expected)


def test_blocks_are_registered_and_attention_says_its_kind(counted: Counted) -> None:
    assert TransformerBlockRegistry.get(OpenSoraBlock).return_hidden_states_index == 0
    for block in counted.model.transformer_blocks:
        assert (block.attn1.is_cross_attention, block.attn2.is_cross_attention) == (False, True)


def test_saves_and_loads_through_diffusers(counted: Counted, tmp_path: Path) -> None:
    counted.model.save_pretrained(tmp_path)
    again = OpenSoraT2V.from_pretrained(tmp_path, low_cpu_mem_usage=False).eval()
    assert dict(again.config) | {"_name_or_path": ""} == dict(counted.model.config) | {
        "_name_or_path": ""
    }
    with torch.no_grad():
        output = again(counted.latents, torch.tensor(999.0), counted.embeds).sample
    assert torch.equal(output, counted.sample(999.0))


def test_half_precision_loads_through_diffusers() -> None:
    model = OpenSoraT2V.from_pretrained(
        GOLDEN / "main", torch_dtype=torch.bfloat16, low_cpu_mem_usage=False
    )
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_all_blocks_share_one_compiled_graph(counted: Counted) -> None:
    """With diffusers' cache around them; fullgraph fails on anything that cannot be traced."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    expected = counted.sample(500.5)
    model = counted.model = load_transformer(GOLDEN / "main")
    model.compile_repeated_blocks(fullgraph=True, backend=backend)
    model.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    torch.testing.assert_close(counted.sample(500.5), expected, atol=1e-5, rtol=0)
    assert len(graphs) == 1
    torch.compiler.reset()
