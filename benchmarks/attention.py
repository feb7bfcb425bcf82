"""Section `attention`: would it pay to reuse self-attention alone, in place of whole blocks?

At 93 frames of 720p self-attention with its projections is 88 % of a block's work (`share`), so
reusing that alone would keep the rest of the block fresh for little. Compared on the bundled model,
every second step: the output of self-attention of all blocks reused or forecast; all of the blocks
at the same steps; and all of the blocks at so many of these steps as save no more work than
attention alone would save there.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from benchmarks.field import ANCESTRAL
from benchmarks.lab import Lab
from benchmarks.told import Told
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import forecast_weights
from osp_opt.model.attention import SelfAttention
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import ratio_ci
from osp_opt.quality.metrics import mse

__all__ = ["AttentionReuse", "run", "share"]

SAMPLERS = ("EulerDiscrete", ANCESTRAL)
FIRST = 4  # step from which on every second one reuses
RELEASED = (24 * 45 * 80, 2304, 512)  # of 93x720p: tokens, width, caption tokens


def share(tokens: int, width: int, caption: int) -> float:
    """Of a block's multiply-adds, those of self-attention with its projections."""
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    cross = 2 * tokens * width**2 + 2 * tokens * caption * width
    return attention / (attention + cross + 8 * tokens * width**2)


def run(lab: Lab) -> dict[str, Any]:
    """Squared errors of the latents to the plain video of half the original's steps."""
    requests = lab.judging(lab.size.field_prompts)
    size = replace(lab.size, steps=lab.size.half)
    rows = []
    for sampler in SAMPLERS:
        there = Lab(lab.work / "attention", size, lab.seed, lab.device.name, {"sampler": sampler})
        found = [_errors(there, sampler, request) for request in requests]
        for order in (0, 1):
            own = np.array([one[f"attention {order}"] for one in found])
            for kind in ("same steps", "same work"):
                other = np.array([one[f"{kind} {order}"] for one in found])
                ratio = ratio_ci((own / other).tolist()).as_json()
                rows.append({"sampler": sampler, "order": order, "against": kind, "ratio": ratio})
    return {"rows": rows, "prompts": len(requests), "share": share(*RELEASED)}


def _errors(lab: Lab, sampler: str, request: Request) -> dict[str, float]:
    steps, blocks = len(lab.reference), lab.maker.num_blocks
    every = list(range(FIRST + 1, steps, 2))
    fewer = np.linspace(0, len(every) - 1, round(share(*RELEASED) * len(every))).round()

    def error(cache: Any = None, transformer: Any = None) -> float:
        made = lab.denoise(request, lab.reference, cache, transformer).latents.cpu()
        return mse(made, lab.full_latents(request))

    def measure() -> dict[str, Any]:
        found = {}
        for order in (0, 1):
            prototype = AttentionReuse(lab.maker.pipeline.transformer, order, frozenset(every))
            found[f"attention {order}"] = error(transformer=prototype)
            for kind, reused in (
                ("same steps", every),
                ("same work", [every[int(i)] for i in fewer]),
            ):
                plan = {step: [(0, blocks)] for step in reused}
                policy = CachePolicy.explicit(plan, steps, order=order)
                found[f"{kind} {order}"] = error(lab.block_cache(policy))
        print(f"  {sampler}: {request.prompt}", flush=True)
        return found

    return lab.remembered(f"attention {sampler} {request.seed} {request.prompt}", measure)


class AttentionReuse(Told):
    """A prototype: a copy of a transformer whose self-attention is reused at some steps.

    order 0 takes its last output, 1 goes on from the last two in a line.
    """

    def __init__(self, model: nn.Module, order: int, reused: frozenset[int]) -> None:
        super().__init__(copy.deepcopy(model))
        self._order = order
        self._reused = reused
        for module in self.model.modules():
            if isinstance(module, SelfAttention):
                self._put_into(module)

    def _put_into(self, attention: SelfAttention) -> None:
        compute = attention.forward
        known: dict[int, Tensor] = {}  # outputs by step, the last two

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            for step in [step for step in known if step >= self.step]:  # of the video before
                del known[step]
            if self.step in self._reused:
                steps = sorted(known, reverse=True)[: self._order + 1]
                weights = forecast_weights(steps, self.step)
                total = weights[0] * known[steps[0]]
                return total if len(steps) == 1 else total + weights[1] * known[steps[1]]
            known[self.step] = compute(*args, **kwargs)
            for step in sorted(known)[:-2]:
                del known[step]
            return known[self.step]

        attention.forward = forward  # type: ignore[method-assign]
