"""A transformer that stands in for another one and is told the step of each call."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

__all__ = ["Told"]


class Told:
    """Passes everything on to `model`. The denoiser enters diffusers' `cache_context` around each
    call, where `step` and `timestep` are told.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.step = 0
        self.timestep = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def cache_context(
        self, name: str, *, step_index: int, timestep: float, **told: Any
    ) -> AbstractContextManager[None]:
        """As the model's."""
        self.step, self.timestep = step_index, timestep
        context: AbstractContextManager[None] = self.model.cache_context(
            name, step_index=step_index, timestep=timestep, **told
        )
        return context

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)
