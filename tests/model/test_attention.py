"""Rotary tables against the official ones, attention kernels, and the sequence-parallel seam."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from safetensors.torch import load_file
from torch import Tensor

from osp_opt.base.errors import OptionError
from osp_opt.model.attention import RotaryTables, rotary_table, rotate
from osp_opt.model.release import load_transformer
from osp_opt.model.transformer import OpenSoraT2V

GOLDEN = Path(__file__).parents[1] / "golden" / "transformer"
UNIT = (1.0, 1.0, 1.0)


@pytest.fixture(scope="module")
def rope() -> dict[str, Tensor]:
    return load_file(GOLDEN / "rope_unit.safetensors")


@pytest.fixture
def case() -> dict[str, Tensor]:
    data = load_file(GOLDEN / "case_a_video.safetensors")
    return {key[3:]: value for key, value in data.items() if key.startswith("in.")}


@pytest.mark.parametrize("suffix", ["fp32", "bf16"])
@pytest.mark.parametrize(("prefix", "width"), [("", 18), ("D32_", 96)])
def test_tables_equal_the_official_ones(
    rope: dict[str, Tensor], prefix: str, width: int, suffix: str
) -> None:
    """In bfloat16 exactly: the angles are rounded before the cosine, as in training."""
    cos, sin = rope[f"{prefix}cos_{suffix}"], rope[f"{prefix}sin_{suffix}"]
    ours_cos, ours_sin = rotary_table((1, 1, len(cos)), UNIT, width, cos.dtype)
    third = width // 3
    half = third // 2
    last = slice(2 * third, None)  # the w axis
    atol = 0.0 if suffix == "bf16" else 1e-6
    torch.testing.assert_close(ours_cos[:, 0, last], cos, atol=atol, rtol=0)
    signed = torch.cat((-sin[:, :half], sin[:, half:]), dim=-1)
    torch.testing.assert_close(ours_sin[:, 0, last], signed, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("query", "grid", "output"), [("q", (8, 4, 5), "out"), ("d96_q", (2, 3, 40), "d96_out")]
)
@pytest.mark.parametrize(
    ("dtype", "suffix", "atol"), [(torch.float32, "fp32", 2e-6), (torch.bfloat16, "bf16", 0.02)]
)
def test_rotation_equals_the_official_one(
    rope: dict[str, Tensor],
    query: str,
    grid: tuple[int, int, int],
    output: str,
    dtype: torch.dtype,
    suffix: str,
    atol: float,
) -> None:
    states = rope[query].transpose(1, 2).to(dtype)
    rotated = rotate(states, rotary_table(grid, UNIT, states.shape[-1], dtype)).transpose(1, 2)
    torch.testing.assert_close(rotated, rope[f"{output}_{suffix}"], atol=atol, rtol=0)


def test_scores_depend_on_relative_positions_only() -> None:
    """The defining property of rotary embedding, checked on a shifted pair of tokens."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 24), torch.randn(1, 1, 1, 24)
    grid = (4, 5, 6)
    table = rotary_table(grid, (1.0, 2.0, 0.5), 24, torch.float64)
    queries = rotate(query.double().expand(1, 120, 1, 24), table)
    keys = rotate(key.double().expand(1, 120, 1, 24), table)
    scores = torch.einsum("bnhk,bmhk->nm", queries, keys).reshape(*grid, *grid)
    torch.testing.assert_close(scores[0, 1, 2, 2, 3, 3], scores[1, 0, 4, 3, 2, 5])
    torch.testing.assert_close(queries.norm(dim=-1), query.double().norm().expand(1, 120, 1))


def test_tables_are_kept_for_the_last_few_shapes() -> None:
    tables = RotaryTables(12, UNIT, capacity=2)
    device = torch.device("cpu")
    first = tables.get((1, 2, 3), torch.float32, device)
    assert tables.get((1, 2, 3), torch.float32, device) is first
    tables.get((2, 2, 3), torch.float32, device)
    tables.get((1, 2, 3), torch.float32, device)
    tables.get((3, 2, 3), torch.float32, device)
    assert len(tables) == 2
    assert tables.get((1, 2, 3), torch.float32, device) is first
    tables.reset()
    assert len(tables) == 0


def test_attention_backend_belongs_to_one_model(case: dict[str, Tensor]) -> None:
    ours, other = (load_transformer(GOLDEN / "main") for _ in range(2))
    active = _AttentionBackendRegistry.get_active_backend()
    with torch.no_grad():
        before = other(**case).sample
        ours.set_attention_backend("_native_math")
        assert _AttentionBackendRegistry.get_active_backend() == active
        kinds = {block.attn1.backend.value for block in ours.transformer_blocks}
        assert kinds == {"_native_math"}
        torch.testing.assert_close(ours(**case).sample, before, atol=1e-5, rtol=0)
        assert torch.equal(other(**case).sample, before)
        ours.reset_attention_backend()
        assert torch.equal(ours(**case).sample, before)


def test_unknown_attention_backend_is_refused() -> None:
    model = OpenSoraT2V(num_layers=1, num_attention_heads=1, attention_head_dim=6)
    with pytest.raises(OptionError, match="'falsh' is unknown; use one of"):
        model.set_attention_backend("falsh")


class ThreadRank:
    """One of several ranks in this process: a real exchange, over shared lists and a barrier."""

    def __init__(self, rank: int, board: list[Tensor], barrier: threading.Barrier) -> None:
        self.rank, self.board, self.barrier = rank, board, barrier

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        self.board[self.rank] = tensor
        self.barrier.wait()
        tensors = list(self.board)
        self.barrier.wait()
        return tensors

    def _mine(self, tensor: Tensor, dim: int) -> Tensor:
        return tensor.tensor_split(len(self.board), dim)[self.rank]

    def split_tokens(self, tokens: Tensor) -> Tensor:
        return self._mine(tokens, 1)

    def gather_tokens(self, tokens: Tensor) -> Tensor:
        return torch.cat(self._gather(tokens), dim=1)

    def scatter_heads(self, states: Tensor) -> Tensor:
        return torch.cat([self._mine(part, 2) for part in self._gather(states)], dim=1)

    def gather_heads(self, states: Tensor) -> Tensor:
        return torch.cat([self._mine(part, 1) for part in self._gather(states)], dim=2)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_that_share_tokens_make_the_same_video(case: dict[str, Tensor], ranks: int) -> None:
    """160 tokens and 4 heads over 2, 3 (uneven) and 4 ranks, with a partial latent mask."""
    case["attention_mask"][1, :, :, 6:] = 0
    board, barrier = [torch.empty(0)] * ranks, threading.Barrier(ranks, timeout=60)

    def run(rank: int) -> Tensor:
        model = load_transformer(GOLDEN / "main")
        with torch.no_grad():
            return model(**case, sequence=ThreadRank(rank, board, barrier)).sample

    with torch.no_grad():
        expected = load_transformer(GOLDEN / "main")(**case).sample
    with ThreadPoolExecutor(ranks) as pool:
        for output in pool.map(run, range(ranks)):
            torch.testing.assert_close(output, expected, atol=1e-5, rtol=0)
