"""The network as a denoiser D(x, sigma), with classifier-free guidance, a cache or a recorder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from osp_opt.base.errors import OptionError, PolicyError
from osp_opt.cache.runtime import BlockCache
from osp_opt.model.transformer import BlockLoop, TextContext, run_blocks
from osp_opt.sampling.schedule import sigma_of
from osp_opt.sampling.steps import vp_scale


class Denoiser(Protocol):
    """The denoised prediction D(x, sigma), in the symbols of Karras et al. 2022 (2206.00364)."""

    def __call__(self, x: Tensor, sigma: float, *, timestep: float, step: int) -> Tensor:
        """x [b c t h w] = x0 + sigma eps (VE scaling); returns the predicted x0, after guidance."""
        ...


class BlockLoops(Protocol):
    """What supplies the transformer's block loop for a step: a block cache or a recorder."""

    def at(self, step: int, branch: str = "both") -> BlockLoop: ...


class Recorder(BlockLoops, Protocol):
    """A `BlockLoops` that also keeps the denoised predictions."""

    def record_denoised(self, step: int, denoised: Tensor) -> None: ...


@dataclass(frozen=True)
class Conditions:
    """The prompts as the transformer takes them, one text context per network call of a step.

    Keys are the guidance branches that a call computes: `both` (a batch of negative then positive
    prompts, or positive ones alone without guidance), or `negative` and `positive` in turn.
    """

    branches: dict[str, TextContext]
    guided: bool
    prompts: tuple[Tensor, Tensor] | None = None  # embeds and mask, where a call takes both

    def with_positive(self, transformer: Any) -> Conditions:
        """Also with the positive branch by itself, for steps that run it alone."""
        if self.prompts is None or "positive" in self.branches:
            return self
        own = transformer.encode_text(*self.prompts)
        return replace(self, branches={**self.branches, "positive": own})

    @classmethod
    def encode(
        cls,
        transformer: Any,
        embeds: Tensor,
        mask: Tensor,
        negative: tuple[Tensor, Tensor] | None,
        sequential: bool = False,
    ) -> Conditions:
        """Compute each prompt's text context once; `negative` (embeds, mask) turns guidance on.

        `embeds` [b l c] and `mask` [b l]; `sequential` halves the network's batch and memory.
        """
        if negative is None:
            return cls({"both": transformer.encode_text(embeds, mask)}, guided=False)
        if sequential:
            texts = {
                "negative": transformer.encode_text(*negative),
                "positive": transformer.encode_text(embeds, mask),
            }
            return cls(texts, guided=True)
        both = torch.cat([negative[0], embeds]), torch.cat([negative[1], mask])
        return cls({"both": transformer.encode_text(*both)}, True, (embeds, mask))


class GuidedDenoiser:
    """A transformer that predicts eps, as a `Denoiser` (calling it) and a `NoisePredictor`.

    Guidance (Ho & Salimans 2022, arXiv 2207.12598): eps = eps_neg + g (eps_pos - eps_neg).
    `cache` and `recorder` supply the block loop of each step and exclude each other (OptionError).
    Where the cache reuses guidance, a step runs the positive branch alone; PolicyError where there
    is no guidance to reuse.
    The modulations of `timesteps` are computed in one go; others when they are met.
    Latents stay float32; the network runs in its own dtype. Nothing waits for the device.
    """

    def __init__(
        self,
        transformer: Any,
        conditions: Conditions,
        guidance_scale: float,
        cache: BlockLoops | None = None,
        recorder: Recorder | None = None,
        timesteps: Sequence[float] = (),
    ) -> None:
        if cache is not None and recorder is not None:
            raise OptionError("recording needs every block to run: use either cache or recorder")
        self.transformer = transformer
        self.conditions = conditions
        self.guidance_scale = guidance_scale
        self.recorder = recorder
        self._dtype = transformer.dtype  # diffusers walks through the whole model for it
        times = transformer.encode_timesteps(timesteps) if timesteps else ()
        self._times = dict(zip(timesteps, times, strict=True))
        self._loops: BlockLoops | None = cache if recorder is None else recorder
        self._guidance = cache.guidance if isinstance(cache, BlockCache) else None
        if self._guidance is not None:
            if not conditions.guided:
                raise PolicyError(
                    f"the cache policy reuses guidance, and guidance scale {guidance_scale:g} has "
                    "none; use another policy, or a scale above 1"
                )
            parallel = getattr(transformer, "parallel", None)
            if parallel is not None and parallel.layout.cfg > 1:
                raise PolicyError(
                    "the cache policy reuses guidance, which saves nothing where the branches are "
                    "on ranks of their own; use cfg=1"
                )
            self.conditions = conditions.with_positive(transformer)

    def __call__(self, x: Tensor, sigma: float, *, timestep: float, step: int) -> Tensor:
        denoised = x - sigma * self._eps(x / vp_scale(sigma), timestep, step)
        if self.recorder is not None:
            self.recorder.record_denoised(step, denoised)
        return denoised

    def predict_noise(self, x: Tensor, *, timestep: float, step: int) -> Tensor:
        """eps for x [b c t h w] in the network's own (VP) scaling, float32."""
        eps = self._eps(x, timestep, step)
        if self.recorder is not None:
            sigma = sigma_of(timestep)
            self.recorder.record_denoised(step, vp_scale(sigma) * x - sigma * eps)
        return eps

    def _eps(self, x: Tensor, timestep: float, step: int) -> Tensor:
        if not self.conditions.guided:
            return self._run(x, timestep, step, "both")
        if self._guidance is not None and self._guidance.reuses(step):
            positive = self._run(x, timestep, step, "positive")
            (difference,) = self._guidance.differences(step, [positive])
            return positive + (self.guidance_scale - 1.0) * difference
        if "both" in self.conditions.branches:
            doubled = self._run(torch.cat([x, x]), timestep, step, "both")
            negative, positive = doubled.chunk(2)
        else:
            negative = self._run(x, timestep, step, "negative")
            positive = self._run(x, timestep, step, "positive")
        difference = positive - negative
        if self._guidance is not None:
            self._guidance.put(step, [difference])
        return negative + self.guidance_scale * difference

    def _run(self, x: Tensor, timestep: float, step: int, branch: str) -> Tensor:
        loop = run_blocks if self._loops is None else self._loops.at(step, branch)
        time = self._times.get(timestep)
        if time is None:
            time = torch.full((), timestep, device=x.device, dtype=torch.float32)
        with self._told(branch, step, timestep):
            output: Tensor = self.transformer(
                x.to(self._dtype),
                time,
                text=self.conditions.branches[branch],
                blocks=loop,
                return_dict=False,
            )[0]
        # Checkpoints with a learned variance put it behind the noise; sampling does not use it.
        return output[:, : x.shape[1]].float()

    def _told(self, branch: str, step: int, timestep: float) -> AbstractContextManager[None]:
        """Where diffusers' own caches learn the branch and the step; sigma is the share of noise in
        [0, 1], as in diffusers' pipelines of flow models.
        """
        told = getattr(self.transformer, "cache_context", None)
        if told is None:  # spread over ranks
            return nullcontext()
        sigma = sigma_of(timestep)
        context: AbstractContextManager[None] = told(
            branch,
            step_index=step,
            num_inference_steps=len(self._times) or None,
            timestep=timestep,
            sigma=sigma / (1.0 + sigma),
        )
        return context
