"""What each sampler is: the one table that options, schedules and searches read (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

__all__ = ["FOLLOW_TIMESTEPS", "SAMPLER_KINDS", "STEERABLE", "Sampler", "SamplerKind"]

MAX_STEPS = 1000
"""The noise levels on which the released models were trained."""


@dataclass(frozen=True)
class SamplerKind:
    """How a sampler behaves, as far as anyone has to know.

    timesteps: which ones of one's own it follows, any ("float") or "whole" ones; None: none.
    ancestral: whether it draws fresh noise on the way, which decides what its steps cost.
    order: of its steps; a second-order step is not what the cost of an Euler step says.
    fewest, most: steps that it can make (diffusers 0.42: PNDM starts with four, and the last of
    1000 levels divides by zero in the multistep solvers).
    """

    timesteps: Literal["float", "whole"] | None
    ancestral: bool = False
    order: int = 1
    fewest: int = 1
    most: int = MAX_STEPS

    @property
    def takes_corrections(self) -> bool:
        """Whether its steps can be corrected by the prediction before; not those of second order,
        which are already.
        """
        return self.order == 1 and self.timesteps is not None


Sampler = Literal[
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "DDIM",
    "DDPM",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "PNDM",
    "HeunDiscrete",
    "DEISMultistep",
    "KDPM2AncestralDiscrete",
]

SAMPLER_KINDS: Mapping[str, SamplerKind] = MappingProxyType(
    {
        "EulerAncestralDiscrete": SamplerKind("float", ancestral=True),
        "EulerDiscrete": SamplerKind("float"),
        "DDIM": SamplerKind("whole"),
        "DDPM": SamplerKind("whole", ancestral=True),
        "DPMSolverMultistep": SamplerKind("whole", order=2, most=MAX_STEPS - 1),
        "DPMSolverSinglestep": SamplerKind("whole", order=2),
        "PNDM": SamplerKind(None, fewest=4),
        "HeunDiscrete": SamplerKind("float", order=2),
        "DEISMultistep": SamplerKind(None, order=2, most=MAX_STEPS - 1),
        "KDPM2AncestralDiscrete": SamplerKind(None, ancestral=True, order=2),
    }
)
"""By the name of `--sampler` (the reference's `--sample_method`); the first is the default."""

FOLLOW_TIMESTEPS = tuple(name for name, kind in SAMPLER_KINDS.items() if kind.timesteps is not None)
"""Those that take timesteps of one's own, hence schedules and recipes."""

STEERABLE = (
    "FlowMatchEulerDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DDIMScheduler",
    "CogVideoXDDIMScheduler",
    "CogVideoXDPMScheduler",
)
"""Schedulers of other people's pipelines that can follow levels, by class."""
