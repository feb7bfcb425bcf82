"""Every random number of sampling, and of the searches.

The Euler-ancestral step from noise level a down to b is, exactly (`steps.ancestral_step`),

    x_b = D + (b/a)^2 (x_a - D) + b sqrt(1 - b^2/a^2) z,        x = x0 + sigma eps (VE scaling).

In y = x / sigma^2 and the clock tau = 1 / sigma^2 it reads y_b = y_a + (tau_b - tau_a) D + dW
with dW = sqrt(tau_b - tau_a) z: the noise is a Brownian increment, and the initial latents
sigma_max z are the path's first value, y = W(1 / sigma_max^2). `CoupledNoise` draws all of them
from one path W per (seed, prompt), so runs with different schedules see the same noise and
converge to the same video.

Noise is always drawn on the CPU in float32 for the whole video, keyed by (seed, prompt, place on
the path) and never by rank; slicing for several devices comes after.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from osp_opt.base.errors import OptionError, ScheduleError
from osp_opt.model.text.captions import preprocess_prompt
from osp_opt.sampling.schedule import sigma_table

LOG2_TAU_MAX = 16  # the path covers sigma in [2^-8, 2^8], i.e. log2(tau) in [-16, 16]
DEPTH = 12  # 2^12 cells, each 0.54 % wide in tau; trained timesteps are 0.99 % or more apart
_CELLS = 1 << DEPTH
_CELLS_PER_OCTAVE = _CELLS / (2 * LOG2_TAU_MAX)


class NoiseSource(Protocol):
    """Where a sampler takes its noise from."""

    def initial(self, shape: Sequence[int], sigma: float | None = None) -> torch.Tensor:
        """Unit normal of `shape`, float32 on CPU; the sampler multiplies it by its first sigma.

        `sigma` is that first level; None means the largest trained one.
        """
        ...

    def step(self, index: int, sigma_from: float, sigma_to: float) -> torch.Tensor:
        """Unit normal z for step `index` from noise level `sigma_from` down to `sigma_to`.

        Called once per step, also for the last one (`sigma_to` = 0, where z is not used).
        """
        ...


def keyed_normal(key: str, shape: Sequence[int]) -> torch.Tensor:
    """Unit normal float32 tensor on CPU that is a function of `key` and the shape alone."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    seed, turn = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
    flat = torch.randn(math.prod(shape), generator=torch.Generator().manual_seed(seed))
    # torch's CPU generator keeps 32 bits of a seed only, so many draws would meet twins; turning
    # the stream by further bits of the hash sets them apart.
    return flat.roll(turn % max(1, flat.numel())).reshape(tuple(shape))


@dataclass(frozen=True)
class _Level:
    """A noise level's place on the path: inside grid cell `cell`, `fraction` of its width above."""

    cell: int
    fraction: float

    @classmethod
    def of(cls, sigma: float) -> _Level:
        if not math.isfinite(sigma) or not 2.0**-8 <= sigma < 2.0**8:
            raise ScheduleError(f"noise level {sigma}: coupled noise covers sigma in [2^-8, 2^8)")
        place = (LOG2_TAU_MAX - 2.0 * math.log2(sigma)) * _CELLS_PER_OCTAVE
        cell = min(int(place), _CELLS - 1)
        return cls(cell, place - cell)

    @property
    def width(self) -> float:
        return _node_tau(self.cell + 1) - _node_tau(self.cell)

    @property
    def tau(self) -> float:
        return _node_tau(self.cell) + self.fraction * self.width

    @property
    def deviation(self) -> float:
        """Standard deviation of W at the level, given W at both ends of its cell."""
        return math.sqrt(max(0.0, self.fraction * (1.0 - self.fraction)) * self.width)


def _node_tau(node: int) -> float:
    """Clock of grid node `node` in 0 .. 2^12; the grid is even in log(tau)."""
    return float(2.0 ** (node / _CELLS_PER_OCTAVE - LOG2_TAU_MAX))


class CoupledNoise:
    """One Brownian path per (seed, prompt) in the clock tau = 1 / sigma^2, any level on demand.

    A fixed tree of Brownian bridges: W at both ends of [2^-16, 2^16], then at midpoints (in
    log tau) down to 2^12 cells, then to the level itself with one draw per cell. Each draw is keyed
    by its place, hence any order of levels and any schedule reads the same path. A step costs one
    descent, of which neighbouring levels share the upper part (about 6 draws per step at 100
    steps), and only one descent is held in memory (16 tensors of the video's size), however many
    steps are made.

    Exactness: z is always exactly unit normal, and W is a continuous function of the level. z of
    disjoint intervals are exactly independent as long as the levels lie in different cells, which
    any levels do that are 0.54 % apart in tau (0.27 % in sigma, at most 0.55 of a timestep); even
    1000 uniform steps are. Only inside one cell is the path smoother than Brownian.
    """

    def __init__(self, seed: int, prompt: str, shape: Sequence[int]) -> None:
        self.seed = seed
        self.prompt = prompt
        self.shape = tuple(shape)
        self._nodes: dict[int, torch.Tensor] = {}  # W at the grid nodes of the latest descent
        self._latest: tuple[_Level, torch.Tensor] | None = None

    def initial(self, shape: Sequence[int], sigma: float | None = None) -> torch.Tensor:
        _check_numel(shape, self.shape)
        level = _Level.of(float(sigma_table()[-1]) if sigma is None else sigma)
        return (self._value(level) / math.sqrt(level.tau)).reshape(tuple(shape))

    def step(self, index: int, sigma_from: float, sigma_to: float) -> torch.Tensor:
        if sigma_to == 0.0:
            return torch.zeros(self.shape)
        start, end = _Level.of(sigma_from), _Level.of(sigma_to)
        variance = end.tau - start.tau
        if start.cell == end.cell:  # both levels are made of the same three draws
            variance = variance**2 / start.width + (end.deviation - start.deviation) ** 2
        if not sigma_to < sigma_from or variance <= 0.0:
            raise ScheduleError(f"noise levels {sigma_from} and {sigma_to} do not descend")
        before = self._value(start)  # first, so that the descent kept is the next step's start
        return (self._value(end) - before) / math.sqrt(variance)

    def _normal(self, place: str) -> torch.Tensor:
        return keyed_normal(f"path\0{self.seed}\0{self.prompt}\0{place}", self.shape)

    def _value(self, level: _Level) -> torch.Tensor:
        """W at the level. Callers must not write into it."""
        if self._latest is not None and self._latest[0] == level:
            return self._latest[1]
        left, right = self._cell_ends(level.cell)
        value = torch.lerp(left, right, level.fraction)
        value.add_(self._normal(f"cell {level.cell}"), alpha=level.deviation)
        self._latest = (level, value)
        return value

    def _cell_ends(self, cell: int) -> tuple[torch.Tensor, torch.Tensor]:
        """W at both ends of a cell, descending from the root and keeping the nodes passed."""
        held, self._nodes = self._nodes, {}
        low, high = 0, _CELLS
        first = held.get(low)
        if first is None:
            first = self._normal("first") * math.sqrt(_node_tau(low))
        last = held.get(high)
        if last is None:
            last = first + self._normal("last") * math.sqrt(_node_tau(high) - _node_tau(low))
        self._nodes = {low: first, high: last}
        while high - low > 1:
            middle = (low + high) // 2
            value = held.get(middle)
            if value is None:
                value = self._bridge(low, middle, high)
            self._nodes[middle] = value
            low, high = (middle, high) if cell >= middle else (low, middle)
        return self._nodes[low], self._nodes[high]

    def _bridge(self, low: int, middle: int, high: int) -> torch.Tensor:
        t_low, t_middle, t_high = _node_tau(low), _node_tau(middle), _node_tau(high)
        weight = (t_middle - t_low) / (t_high - t_low)
        value = torch.lerp(self._nodes[low], self._nodes[high], weight)
        deviation = math.sqrt(weight * (t_high - t_middle))
        return value.add_(self._normal(f"node {middle}"), alpha=deviation)


class IndependentNoise:
    """Fresh noise for every step, keyed by (seed, prompt, step index).

    Runs with different numbers of steps share the initial noise and nothing else, as upstream.
    """

    def __init__(self, seed: int, prompt: str, shape: Sequence[int]) -> None:
        self.seed = seed
        self.prompt = prompt
        self.shape = tuple(shape)

    def initial(self, shape: Sequence[int], sigma: float | None = None) -> torch.Tensor:
        _check_numel(shape, self.shape)
        return self._normal("initial").reshape(tuple(shape))

    def step(self, index: int, sigma_from: float, sigma_to: float) -> torch.Tensor:
        return self._normal(f"step {index}")

    def _normal(self, place: str) -> torch.Tensor:
        return keyed_normal(f"fresh\0{self.seed}\0{self.prompt}\0{place}", self.shape)


class GeneratorNoise:
    """Exactly what diffusers draws from `generator`: the initial latents, then one draw per step.

    `shape` is the whole batch's (b, c, t, h, w) and `dtype` the one diffusers would draw in; a
    list of generators gives one per video. Results are float32 whatever the dtype. Raises
    OptionError for what is no generator, and for another number of them.
    """

    def __init__(
        self,
        generator: torch.Generator | list[torch.Generator],
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        several = generator if isinstance(generator, list) else [generator]
        if not all(isinstance(one, torch.Generator) for one in several):
            raise OptionError(f"generator is {generator!r:.60}; it must be a torch.Generator")
        if isinstance(generator, list) and len(generator) != shape[0]:
            raise OptionError(
                f"{len(generator)} generators for {shape[0]} videos; give one for all, or one each"
            )
        self.generator = generator
        self.shape = tuple(shape)
        self.dtype = dtype

    def initial(self, shape: Sequence[int], sigma: float | None = None) -> torch.Tensor:
        _check_numel(shape, self.shape)
        return self._draw().reshape(tuple(shape))

    def step(self, index: int, sigma_from: float, sigma_to: float) -> torch.Tensor:
        return self._draw()

    def _draw(self) -> torch.Tensor:
        first = self.generator[0] if isinstance(self.generator, list) else self.generator
        drawn: torch.Tensor = randn_tensor(
            self.shape, generator=self.generator, device=first.device, dtype=self.dtype
        )
        return drawn.float().cpu()


class BatchNoise:
    """Several videos' sources as one: results are stacked along a new first axis, b."""

    def __init__(self, sources: Sequence[NoiseSource]) -> None:
        self.sources = tuple(sources)

    def initial(self, shape: Sequence[int], sigma: float | None = None) -> torch.Tensor:
        if shape[0] != len(self.sources):
            raise OptionError(f"noise for {len(self.sources)} videos, but {shape[0]} are sampled")
        return torch.stack([source.initial(shape[1:], sigma) for source in self.sources])

    def step(self, index: int, sigma_from: float, sigma_to: float) -> torch.Tensor:
        return torch.stack([source.step(index, sigma_from, sigma_to) for source in self.sources])


def noise_key(prompt: str) -> str:
    """The text that keys a prompt's noise: the caption as the text encoder gets it, cleaned.

    So spellings that are one prompt to the model make one video, and a prompt's video is the same
    wherever it stands in a list, whatever else is sampled, and when a job is taken up again. Keyed
    by the place in the list it would be none of that, and by the seed alone all prompts would share
    one noise, which makes measurements over prompts depend on each other. To compare prompts on one
    noise, give the pipeline `latents` or a `generator`.
    """
    return preprocess_prompt(prompt)


def make_noise(
    kind: str, seeds: Sequence[int], prompts: Sequence[str], shape: Sequence[int]
) -> BatchNoise:
    """Noise of a batch of videos, each of `shape` (c, t, h, w).

    Of two prompts with one `noise_key` and one seed the noise is the same.
    `kind` is "coupled" (one Brownian path per seed and prompt) or "independent" (fresh each step).
    Raises OptionError for another kind or when seeds and prompts do not pair up.
    """
    kinds: dict[str, type[CoupledNoise] | type[IndependentNoise]] = {
        "coupled": CoupledNoise,
        "independent": IndependentNoise,
    }
    if kind not in kinds:
        raise OptionError(f"noise is {kind!r}; it must be coupled or independent")
    if len(seeds) != len(prompts):
        raise OptionError(f"{len(seeds)} seeds for {len(prompts)} prompts; give one per prompt")
    return BatchNoise(
        [kinds[kind](s, noise_key(p), shape) for s, p in zip(seeds, prompts, strict=True)]
    )


def search_rng(seed: int, *purpose: int | str) -> np.random.Generator:
    """The generator for one purpose of a search: every random choice of the searches is drawn
    from one of these, so it depends on the seed and the purpose, not on what ran before.
    """
    words = [seed & 0xFFFFFFFF]
    for part in purpose:
        words += [part & 0xFFFFFFFF] if isinstance(part, int) else list(part.encode())
    return np.random.default_rng(np.random.SeedSequence(words))


def _check_numel(asked: Sequence[int], held: Sequence[int]) -> None:
    if math.prod(asked) != math.prod(held):
        raise OptionError(f"noise was made for shape {tuple(held)}, but {tuple(asked)} is sampled")
