"""Recording while sampling: no network evaluation is added and no result is changed.

Suffixes: B boundaries (blocks + 1), R guidance branches, V videos of a batch, S kept tokens,
D features, E kept latent elements, K steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from osp_opt.base.errors import CalibrationError
from osp_opt.calibration.signal_recorder import SignalRecorder
from osp_opt.calibration.statistics import VideoStatistics
from osp_opt.calibration.subsample import spread_indices
from osp_opt.system.parallel import Parallel, RankGroup

__all__ = ["LAGS", "CalibrationRecorder"]

# Steps; what the cache search asks about. Longer lags follow from the two nearest. A forecast over
# one step from changes two apart is a small difference of the errors over one, two and three: with
# the third interpolated it looked twice as bad as it is.
LAGS = (1, 2, 3, 4)

Layer = Callable[[Tensor], Tensor]
BRANCHES = ("negative", "positive")  # the order in which the pipeline concatenates them
MAX_TOKENS = 512  # kept of each hidden state; 33 boundaries x 2 x 512 x 2304 in bf16: 156 MB
FEW_TOKENS = 64  # of more, half at most: halves the products, a step's errors change by 3 %
MAX_STATE_BYTES = 1 << 30  # of all hidden states kept at once, on the model's device
MAX_LATENT_BYTES = 1 << 28  # of all denoised predictions together, float32, on the same device


@dataclass(frozen=True)
class _Call:
    """A call of the transformer in progress, and where its states are kept [B, R', V, S, D]."""

    step: int
    branch: str
    rows: slice
    kept: Tensor

    @property
    def first(self) -> Tensor:
        """The kept input of the first block, [R' V, S, D]."""
        return self.kept[0].flatten(0, 1)


class CalibrationRecorder:
    """Records one video (or one batch of videos, then averaged) of `num_steps` steps.

    Args:
        num_steps: K, the sampling steps.
        num_blocks: blocks of the transformer.
        guidance_scale: w of ``u + w (c - u)``; None when the model runs without guidance, so that
            the batch holds one branch.
        lags: distances in steps over which the change of the hidden state is recorded.
        max_tokens: tokens kept of each hidden state (evenly spread, see `spread_indices`), of more
            than `FEW_TOKENS` half at most.
        max_state_bytes: bound on the memory of the hidden states; fewer tokens are kept to fit.
        max_latent_bytes: bound on the memory of the denoised predictions; beyond it, elements are
            kept evenly spread, the same at every step.
        spread: the ranks that make the video together, each of which is shown its part of tokens
            and branches: all of them keep the whole.

    Memory: (max(lags) + 1) x boundaries x branches x tokens x features on the model's device, in
    the model's dtype, at most `max_state_bytes`; and at most `max_latent_bytes` there, too, so that
    nothing waits for the device before `result`; and what `SignalRecorder` keeps.
    Keeping a part of the tokens or elements leaves every mean unbiased over places; its relative
    error falls as 1/sqrt(kept).
    """

    def __init__(
        self,
        num_steps: int,
        num_blocks: int,
        *,
        guidance_scale: float | None = None,
        lags: Sequence[int] = (1, 2),
        max_tokens: int = MAX_TOKENS,
        max_state_bytes: int = MAX_STATE_BYTES,
        max_latent_bytes: int = MAX_LATENT_BYTES,
        spread: Parallel | None = None,
    ) -> None:
        if num_steps < 2 or num_blocks < 1 or max_tokens < 1:
            raise CalibrationError(
                f"recorder: {num_steps} steps, {num_blocks} blocks, {max_tokens} tokens; needs at "
                "least 2, 1 and 1"
            )
        if not lags or list(lags) != sorted(set(lags)) or lags[0] < 1:
            raise CalibrationError(f"recorder: lags {list(lags)} must be positive and ascending")
        self.num_steps = num_steps
        self.num_blocks = num_blocks
        self.lags = tuple(lags)
        self._guidance_scale = guidance_scale
        self._max_tokens = max_tokens
        self._max_state_bytes = max_state_bytes
        self._spread = spread or Parallel()
        self._elements = max(1, max_latent_bytes // (4 * num_steps))
        self._signals = SignalRecorder(num_steps, self._num_branches)
        self.reset()

    def reset(self) -> None:
        """Forget everything recorded, ready for another video."""
        self._denoised: dict[int, Tensor] = {}
        self._states: dict[int, Tensor] = {}
        self._filled: dict[int, set[str]] = {}
        self._spare: list[Tensor] = []
        self._grams: dict[tuple[int, int], Tensor] = {}
        self._tokens: _KeptTokens | None = None
        self._kept_elements: Tensor | None = None
        self._signals.reset()

    def at(self, step: int, branch: str = "both") -> Callable[[Sequence[Layer], Tensor], Tensor]:
        """The block loop of `step`: runs every block and keeps what crosses their boundaries.

        `branch` is "both" for a batch of negative and positive prompts one after the other, else
        "negative" or "positive".
        """

        def loop(layers: Sequence[Layer], x: Tensor) -> Tensor:
            self.begin(step, branch, x, len(layers))
            self._signals.record_input(step, self._call.rows, layers[0], self._call.first)
            for boundary, layer in enumerate(layers, start=1):
                x = layer(x)
                self.cross(boundary, x)
            self.end()
            return x

        return loop

    def begin(self, step: int, branch: str, states: Tensor, num_blocks: int) -> None:
        """A call of the transformer is about to run its blocks on `states` [b, tokens..., d].

        For who runs the blocks himself: then follow `cross` after each block, and `end`.
        """
        if num_blocks != self.num_blocks:
            raise CalibrationError(
                f"recorder: made for {self.num_blocks} blocks, the model has {num_blocks}"
            )
        states = states.flatten(1, -2)
        rows, kept = self._rows(step, branch, states)
        self._call = _Call(step, branch, rows, kept)
        self._keep(kept, 0, states)

    def cross(self, boundary: int, states: Tensor) -> None:
        """The hidden states behind block `boundary` - 1."""
        self._keep(self._call.kept, boundary, states.flatten(1, -2))

    def end(self) -> None:
        """All blocks of the call have run."""
        call = self._call
        self._signals.record_states(call.step, call.rows, call.kept[0], call.kept[-1])
        self._finish(call.step, call.branch)

    def record_denoised(self, step: int, denoised: Tensor) -> None:
        """Keep the denoised prediction (after guidance) of `step`; the last call counts."""
        flat = denoised.detach().reshape(-1)
        if flat.numel() > self._elements:
            if self._kept_elements is None:
                kept = spread_indices(flat.numel(), self._elements)
                self._kept_elements = torch.from_numpy(kept).to(flat.device)
            flat = flat[self._kept_elements]
        self._denoised[step] = flat.to(dtype=torch.float32, copy=True)

    def result(self) -> VideoStatistics:
        """The statistics of the finished video. Raises CalibrationError when steps are missing."""
        missing = [step for step in range(self.num_steps) if step not in self._denoised]
        if missing:
            raise CalibrationError(
                f"recorder: steps {missing[:5]} of {self.num_steps} were not sampled"
            )
        denoised_KE = torch.stack([self._denoised[k] for k in range(self.num_steps)]).cpu()
        b = self.num_blocks + 1
        mean = np.full((self.num_steps, len(self.lags), b, b), np.nan, dtype=np.float32)
        guided = mean.copy()
        for (step, lag), products in self._grams.items():
            at = (step, self.lags.index(lag))
            mean[at], guided[at] = self._combined(products.cpu().numpy())
        return VideoStatistics(_gram(denoised_KE), mean, guided, self._signals.result())

    def _combined(self, products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean over branches, and of the guided combination, from products of all branches."""
        r = self._num_branches
        products_BRBR = rearrange(products, "(b1 r1) (b2 r2) -> b1 r1 b2 r2", r1=r, r2=r)
        mean = np.einsum("arbr->ab", products_BRBR) / r
        w = self._guidance_scale
        weights = np.array([1.0] if w is None else [1.0 - w, w])
        return mean, np.einsum("arbs,r,s->ab", products_BRBR, weights, weights)

    @property
    def _num_branches(self) -> int:
        return 1 if self._guidance_scale is None else 2

    def _rows(self, step: int, branch: str, x: Tensor) -> tuple[slice, Tensor]:
        """The branches that this call fills, and their rows [B, R', V, S, D] of the buffer."""
        r = self._num_branches
        batch, tokens = x.shape[0] * self._spread.cfg.size, x.shape[1] * self._spread.sequence.size
        if branch == "both":
            rows, videos = slice(0, r), batch // r
        elif branch in BRANCHES and r == 2:
            rows, videos = slice(BRANCHES.index(branch), BRANCHES.index(branch) + 1), batch
        else:
            raise CalibrationError(f"recorder: no guidance branch {branch!r} among {r}")
        if branch == "both" and videos * r != batch:
            raise CalibrationError(f"recorder: a batch of {batch} does not hold {r} branches")
        if self._tokens is None:
            states = (self.lags[-1] + 1) * (self.num_blocks + 1) * r * videos
            fitting = self._max_state_bytes // (states * x.shape[2] * x.element_size())
            wanted = min(self._max_tokens, max(FEW_TOKENS, tokens // 2))
            kept = spread_indices(tokens, max(1, min(wanted, fitting)))
            self._tokens = _KeptTokens(kept, tokens, self._spread.sequence, x.device)
        if step not in self._states:
            shape = (self.num_blocks + 1, r, videos, self._tokens.count, x.shape[2])
            fits = [old for old in self._spare if old.shape == shape and old.dtype == x.dtype]
            self._states[step] = fits[0] if fits else x.new_empty(shape)
            self._spare = fits[1:]
            self._filled[step] = set()
        return rows, self._states[step][:, rows]

    def _keep(self, state: Tensor, boundary: int, x: Tensor) -> None:
        assert self._tokens is not None
        if x.shape[-1] != state.shape[-1]:
            raise CalibrationError(
                f"recorder: hidden states of {state.shape[-1]} features become {x.shape[-1]} at "
                f"block {boundary - 1}; such blocks cannot be compared from step to step"
            )
        kept = self._spread.cfg.all_gather(self._tokens(x.detach()), dim=0)
        state[boundary].copy_(kept.reshape(state.shape[1:]))  # (r v) s d -> r v s d

    def _finish(self, step: int, branch: str) -> None:
        """Once every branch of `step` is there: its change Grams; then drop what is too old."""
        self._filled[step] |= set(BRANCHES if branch == "both" else (branch,))
        if len(self._filled[step]) < self._num_branches:
            return
        for lag in self.lags:
            earlier = self._states.get(step - lag)
            if earlier is not None:
                self._grams[step, lag] = _change_products(self._states[step], earlier)
        for old in [k for k in self._states if k <= step - self.lags[-1] or k > step]:
            self._spare.append(self._states.pop(old))


class _KeptTokens:
    """The tokens that are kept, of a hidden state whose tokens lie in runs over `group`.

    Args:
        kept: which, ascending.
        total: how many there are, on all ranks together.
        group: the ranks, each of which has as many tokens.
        device: of the hidden states.
    """

    def __init__(
        self, kept: np.ndarray, total: int, group: RankGroup, device: torch.device
    ) -> None:
        self.count = len(kept)
        self._group = group
        own = total // group.size
        by_rank = [kept[kept // own == rank] - rank * own for rank in range(group.size)]
        longest = max(map(len, by_rank))  # what is gathered has one length on all ranks
        padded = np.zeros((group.size, longest), dtype=np.int64)
        for rank, indices in enumerate(by_rank):
            padded[rank, : len(indices)] = indices
        order = [rank * longest + i for rank, part in enumerate(by_rank) for i in range(len(part))]
        self._all = self.count == total
        self._mine = torch.from_numpy(padded[group.rank]).to(device)
        self._order = torch.tensor(order, device=device)

    def __call__(self, x: Tensor) -> Tensor:
        """The kept ones [b, S, D] of all ranks, of this rank's `x` [b, s', D] (collective)."""
        own = x if self._all else x[:, self._mine]
        if self._group.size == 1:
            return own
        found = self._group.all_gather(own, dim=1)
        return found if self._all else found[:, self._order]


def _change_products(now: Tensor, earlier: Tensor) -> Tensor:
    """Mean products of all boundaries' and branches' changes, [B R, B R], still on the device.

    One matrix product serves the mean over branches and every guided combination of them.
    """
    change = rearrange(now.float() - earlier.float(), "b r v s d -> (b r) (v s d)")
    return change @ change.T / change.shape[1]


def _gram(rows_KE: Tensor, chunk: int = 1 << 16) -> np.ndarray:
    """Mean product of rows, [K, K].

    In float64: neighbouring levels differ by a millionth and less, and the searches take
    differences of these numbers. In chunks, so that the float64 copy stays small.
    """
    gram = torch.zeros(len(rows_KE), len(rows_KE), dtype=torch.float64)
    for start in range(0, rows_KE.shape[1], chunk):
        wide = rows_KE[:, start : start + chunk].double()
        gram.addmm_(wide, wide.T)
    mean: np.ndarray = (gram / rows_KE.shape[1]).numpy()
    return mean
