"""What decides whether a searched artifact applies: the setting that it was made in. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Literal

from osp_opt.sampling.levels import same_timesteps

__all__ = ["WORDS", "Setting", "agree"]

WORDS: Mapping[str, str] = MappingProxyType(
    {
        "model": "model",
        "steps": "number of steps",
        "timesteps": "timestep schedule",
        "corrections": "correction of the steps",
        "num_frames": "number of frames",
        "height": "height",
        "width": "width",
        "sampler": "sampler",
        "guidance_scale": "guidance scale",
        "dtype": "number format",
        "arguments": "arguments of the call",
    }
)
"""How messages name the fields of a setting."""


@dataclass(frozen=True)
class Setting:
    """The keys of a sidecar's "setting".

    model: its fingerprint. num_frames, height, width, guidance_scale are Open-Sora-Plan's; of other
    pipelines `arguments` are those of the call, and `own_steps` says whether the timesteps are
    those that its scheduler takes for so many steps, `levels` is "flow" where they are 1000 s, and
    `shift` by how much its scheduler shifts levels that it is given (None: not known).
    """

    model: str
    steps: int
    timesteps: tuple[float, ...]
    sampler: str
    dtype: str
    corrections: tuple[float, ...] = ()
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    guidance_scale: float | None = None
    arguments: Mapping[str, Any] | None = None
    own_steps: bool | None = None
    levels: Literal["flow"] | None = None
    shift: float | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON values: of the fields that mean something, lists for tuples."""
        values = {**asdict(self), "timesteps": [*self.timesteps], "corrections": None}
        if self.corrections:
            values["corrections"] = [*self.corrections]
        return {name: value for name, value in values.items() if value is not None}

    def differences(self, recorded: Mapping[str, Any]) -> list[str]:
        """Names of the recorded fields that are otherwise now; fields not recorded agree."""
        now = self.as_json()
        return [
            key
            for key in WORDS
            if recorded.get(key) is not None and not agree(recorded[key], now.get(key))
        ]


def agree(recorded: Any, now: Any) -> bool:
    """Whether two values of a setting are the same; timesteps may differ by what a file loses."""
    if isinstance(now, list):
        return (
            isinstance(recorded, list)
            and all(isinstance(t, (int, float)) for t in recorded)
            and same_timesteps(recorded, now)
        )
    return bool(recorded == now)
