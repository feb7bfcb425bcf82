"""Attention of Open-Sora-Plan v1.2: self-attention with 3D rotary embedding, cross-attention.

Shape letters: b batch, n video tokens in (t h w) order, l caption tokens, h heads, k head width,
d = h * k model width. Attention kernels come from diffusers' dispatch (layout ``b n h k``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from einops import rearrange, repeat
from torch import Tensor, nn

from osp_opt.model.plain import is_plain

ROPE_BASE = 10_000.0  # RoFormer, arXiv 2104.09864


class SequenceParallel(Protocol):
    """How tokens are spread over ranks (Ulysses, arXiv 2309.14509); implemented beside the model.

    Between blocks every rank holds a part of the tokens with all heads; inside self-attention it
    holds all tokens with a part of the heads. Cross-attention needs no exchange.
    """

    def split_tokens(self, tokens: Tensor) -> Tensor:
        """``b n d`` to this rank's ``b n_local d``."""

    def gather_tokens(self, tokens: Tensor) -> Tensor:
        """``b n_local d`` of all ranks to ``b n d``."""

    def scatter_heads(self, states: Tensor) -> Tensor:
        """``b n_local h k`` to ``b n h_local k``."""

    def gather_heads(self, states: Tensor) -> Tensor:
        """``b n h_local k`` to ``b n_local h k``."""


Rotary = tuple[Tensor, Tensor]  # (cos, signed sin), each [n 1 k]


def rotary_table(
    grid: tuple[int, int, int],
    interpolation_scale: tuple[float, float, float],
    head_width: int,
    dtype: torch.dtype,
) -> Rotary:
    """Return the cosines and signed sines of the 3D rotary embedding for a (t h w) token grid.

    The head width is cut in thirds for t, h and w. Within a third the first and second half are
    the two coordinates of each rotated pair, so the sine is negative in the first half. A
    position is its index divided by the axis' interpolation scale.
    """
    third = head_width // 3
    exponent = torch.arange(0, third, 2, dtype=torch.float32) / third
    frequency = ROPE_BASE**-exponent
    angles = []
    for size, scale in zip(grid, interpolation_scale, strict=True):
        position = torch.arange(size, dtype=torch.float32) / scale
        # The weights were trained with angles rounded to the compute type *before* cos and sin;
        # in bfloat16 that moves a cosine by up to 0.1, so more exact tables would be wrong.
        angles.append(torch.outer(position, frequency).to(dtype))
    t, h, w = grid
    table = torch.stack(
        (
            repeat(angles[0], "t m -> (t h w) m", h=h, w=w),
            repeat(angles[1], "h m -> (t h w) m", t=t, w=w),
            repeat(angles[2], "w m -> (t h w) m", t=t, h=h),
        ),
        dim=1,
    )
    cos, sin = table.cos(), table.sin()
    return (
        rearrange(torch.stack((cos, cos), dim=2), "n three half m -> n 1 (three half m)"),
        rearrange(torch.stack((-sin, sin), dim=2), "n three half m -> n 1 (three half m)"),
    )


def rotate(states: Tensor, rotary: Rotary) -> Tensor:
    """Apply a rotary table ``[n 1 k]`` to ``states [b n h k]``."""
    cos, sin = rotary
    first, second = rearrange(states, "b n h (three half m) -> half b n h three m", three=3, half=2)
    swapped = torch.stack((second, first), dim=-2).flatten(-3)  # three times faster than flip
    return torch.addcmul(states * cos, swapped, sin)


class RotaryTables:
    """The most recent rotary tables, at most ``capacity`` of them, so that steps share one."""

    def __init__(
        self, head_width: int, interpolation_scale: tuple[float, float, float], capacity: int = 4
    ) -> None:
        self.head_width = head_width
        self.interpolation_scale = interpolation_scale
        self.capacity = capacity
        self._tables: OrderedDict[tuple[object, ...], Rotary] = OrderedDict()

    @torch.compiler.disable  # type: ignore[untyped-decorator] # made once, not compiled anew
    def get(self, grid: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> Rotary:
        """Return the table of a (t h w) token grid; see :func:`rotary_table`."""
        key = (grid, dtype, device)
        if key not in self._tables:
            # Computed on the CPU: the float32 angles are the same on every device, and a table
            # first asked for under inference_mode must still be usable in training.
            with torch.inference_mode(False), torch.no_grad():
                cos, sin = rotary_table(grid, self.interpolation_scale, self.head_width, dtype)
                self._tables[key] = cos.to(device), sin.to(device)
            while len(self._tables) > self.capacity:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]

    def __len__(self) -> int:
        return len(self._tables)

    def reset(self) -> None:
        """Forget every table."""
        self._tables.clear()


class _Attention(nn.Module, AttentionModuleMixin):
    """The projections both kinds of attention share, and the choice of kernel."""

    _supports_qkv_fusion = False
    is_cross_attention: bool

    def __init__(
        self,
        width: int,
        heads: int,
        head_width: int,
        key_width: int,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.to_q = nn.Linear(width, inner, bias=bias)
        self.to_k = nn.Linear(key_width, inner, bias=bias)
        self.to_v = nn.Linear(key_width, inner, bias=bias)
        self.to_out = nn.ModuleList([nn.Linear(inner, width), nn.Dropout(dropout)])
        # diffusers asks for a processor; here the kernel is chosen by `backend`.
        self.processor = None  # type: ignore[assignment]
        self.backend = AttentionBackendName.NATIVE

    def set_attention_backend(self, backend: str) -> None:
        """Use one of diffusers' attention backends in this module only."""
        self.backend = AttentionBackendName(backend.lower())

    def _split_heads(self, states: Tensor) -> Tensor:
        return rearrange(states, "b n (h k) -> b n h k", h=self.heads)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        # The backend is always named: without one, diffusers takes a process-wide setting that
        # another model's set_attention_backend may have changed.
        result: Tensor = dispatch_attention_fn(
            query, key, value, attn_mask=mask, backend=self.backend
        )
        return result

    def _merge_heads(self, states: Tensor) -> Tensor:
        result: Tensor = self.to_out[0](rearrange(states, "b n h k -> b n (h k)"))
        return self.to_out[1](result)


class SelfAttention(_Attention):
    """Attention among video tokens, rotary embedding on queries and keys.

    After :meth:`fuse_projections` queries, keys and values are one matrix product over the memory
    of the three layers: parameters and state dict stay what they are, and no second copy of the
    weights exists. Whatever is done to a layer (an adapter, a hook, other weights, another dtype)
    ends that by itself, see :attr:`fused`.
    """

    _supports_qkv_fusion = True
    is_cross_attention = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._keep_fused = False  # lay the weights out again after a move, a cast or a copy

    @property
    def fused(self) -> bool:
        """Whether queries, keys and values are one matrix product now.

        They are while the three layers do what an ``nn.Linear`` does and nothing else, and their
        weights lie end to end in one memory, as :meth:`fuse_projections` has put them.
        """
        layers = (self.to_q, self.to_k, self.to_v)
        if not all(is_plain(layer, nn.Linear) for layer in layers):
            return False
        weights, biases = [x.weight for x in layers], [x.bias for x in layers if x.bias is not None]
        return _end_to_end(weights) and (not biases or (len(biases) == 3 and _end_to_end(biases)))

    @torch.no_grad()
    def fuse_projections(self) -> None:
        """Lay the weights of q, k and v end to end, unless a layer is more than its weights."""
        self._keep_fused = True
        layers = (self.to_q, self.to_k, self.to_v)
        if not all(is_plain(layer, nn.Linear) for layer in layers):
            return
        for name in ("weight", "bias"):
            parts = [getattr(layer, name) for layer in layers]
            if not any(part is None or part.dtype != parts[0].dtype for part in parts):
                for part, memory in zip(parts, torch.cat(parts).chunk(3), strict=True):
                    # The same parameter object: an optimiser or a hook that holds it stays right.
                    part.data = memory

    @torch.no_grad()
    def unfuse_projections(self) -> None:
        """Give each of the three layers memory of its own again."""
        fused, self._keep_fused = self.fused, False
        if fused:
            for layer in (self.to_q, self.to_k, self.to_v):
                for parameter in layer.parameters():
                    parameter.data = parameter.data.clone()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A move or a cast gives every parameter memory of its own, and so does a copy (below).
        result = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._keep_fused:
            self.fuse_projections()
        return result

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if self._keep_fused:
            self.fuse_projections()

    def forward(
        self,
        hidden_states: Tensor,
        rotary: Rotary | None = None,
        mask: Tensor | None = None,
        sequence: SequenceParallel | None = None,
        fused: bool | None = None,
    ) -> Tensor:
        """``b n d`` to ``b n d``; ``mask`` is boolean ``[b 1 1 n]``, True where a key counts.

        ``fused`` is :attr:`fused` where the caller has looked already, as compiled code has to.
        """
        project = self._project_fused if fused or (fused is None and self.fused) else self._project
        query, key, value = project(hidden_states)
        if sequence is not None:
            query, key, value = (sequence.scatter_heads(part) for part in (query, key, value))
        if rotary is not None:
            query, key = rotate(query, rotary), rotate(key, rotary)
        attended = self._attend(query, key, value, mask)
        if sequence is not None:
            attended = sequence.gather_heads(attended)
        return self._merge_heads(attended)

    def _project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values ``b n h k`` of ``b n d``."""
        query, key, value = (
            self._split_heads(layer(hidden_states)) for layer in (self.to_q, self.to_k, self.to_v)
        )
        return query, key, value

    def _project_fused(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same as one matrix product, its weight ``[3d d]`` seen through that of ``to_q``."""
        bias = None if self.to_q.bias is None else _three(self.to_q.bias)
        projected = F.linear(hidden_states, _three(self.to_q.weight), bias)
        query, key, value = rearrange(
            projected, "b n (three h k) -> three b n h k", three=3, h=self.heads
        )
        return query, key, value


class CrossAttention(_Attention):
    """Attention of video tokens to the caption, whose keys and values are computed beforehand."""

    is_cross_attention = True

    def encode(self, caption: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values ``[b l h k]`` of a projected caption ``[b l d]``."""
        return self._split_heads(self.to_k(caption)), self._split_heads(self.to_v(caption))

    def forward(
        self, hidden_states: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """``b n d`` to ``b n d``; ``mask`` is boolean ``[b 1 1 l]``, True where a token counts."""
        query = self._split_heads(self.to_q(hidden_states))
        return self._merge_heads(self._attend(query, key, value, mask))


def _end_to_end(parts: Sequence[Tensor]) -> bool:
    """Whether three tensors of one shape follow each other in one memory."""
    first = parts[0]
    storage = first.untyped_storage().data_ptr()  # 0 where there is no memory, as on "meta"
    return storage != 0 and all(
        part.untyped_storage().data_ptr() == storage
        and part.storage_offset() == first.storage_offset() + i * first.numel()
        and (part.shape, part.dtype) == (first.shape, first.dtype)
        and part.is_contiguous()
        for i, part in enumerate(parts)
    )


def _three(first: Tensor) -> Tensor:
    """A tensor and the two behind it in its memory as one, joined along the first axis."""
    first = first.detach()
    return first.as_strided((3 * len(first), *first.shape[1:]), first.stride())
