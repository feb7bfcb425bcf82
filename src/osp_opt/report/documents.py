"""The JSON that other commands left: what the report reads of it, typed and bounded.

Files come from other people, too, and are edited by hand: whatever does not fit is refused in one
line that names the file and the place in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from osp_opt.base.errors import FileError
from osp_opt.evaluate.files import EVALUATION_FORMAT

_OLD = MappingProxyType(
    {
        "predictions_scaled_to_uniform": "predictions_scaled_to_plain",
        "log_predicted_error_over_uniform": "log_predicted_error_over_plain",
        "log_measured_error_over_uniform": "log_measured_error_over_plain",
    }
)
"""Keys by which earlier files call what they hold."""

__all__ = ["Curve", "EvaluationFile", "PolicyMeta", "ScheduleMeta", "checked"]

Number = Annotated[float, Field(ge=-1e12, le=1e12)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Word = Annotated[str, Field(max_length=40)]
Steps = Annotated[int, Field(ge=1, le=10_000)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class IntervalPart(_Part):
    """An interval as `Interval.as_json` writes it."""

    estimate: Number
    low: Number | None
    high: Number | None
    count: Annotated[int, Field(ge=1, le=10**9)]
    values: list[Number] = []


class _Side(_Part):
    folder: str
    take: str = ""


class _Metric(_Part):
    reference: IntervalPart | None = None
    candidate: IntervalPart | None = None
    difference: IntervalPart | None = None


class _Loss(_Part):
    measure: str
    share: IntervalPart


class YardstickFile(_Part):
    """How far the original's own steps are from convergence."""

    steps: Steps
    converged_steps: Steps
    psnr: IntervalPart


class EvaluationFile(_Part):
    """What `evaluate` writes."""

    format: Literal[EVALUATION_FORMAT]  # type: ignore[valid-type]
    reference: _Side
    candidate: _Side
    pairs: Count
    speedup: IntervalPart | None
    metrics: dict[str, _Metric]
    loss: _Loss
    max_loss: Number | None
    verdict: Literal["kept", "lost", "undecided"] | None
    not_measured: list[str]
    yardstick: YardstickFile | None = None


class _Point(_Part):
    steps: Steps
    schedule: str
    kind: str
    error: Annotated[Number, Field(gt=0)]
    low: Number | None = None
    high: Number | None = None


class Curve(_Part):
    """Error against the number of steps, of `search-steps`."""

    reference_steps: Steps
    predictions_scaled_to_plain: bool = False
    plain_steps: Word = "uniform"
    points: Annotated[list[_Point], Field(min_length=1, max_length=100_000)]


class _Measured(_Part):
    speedup: IntervalPart | None = None
    psnr: IntervalPart | None = None


class _Setting(_Part):
    timesteps: Annotated[list[Number], Field(max_length=10_000)] | None = None


class PolicyMeta(_Part):
    """The sidecar of a cache policy."""

    setting: _Setting | None = None
    predicted_speedup: Number | None = None
    measured: _Measured | None = None


class _Verification(_Part):
    searched: _Measured | None = None


class _Search(_Part):
    plain_steps: Word = "uniform"
    log_predicted_error_over_plain: IntervalPart | None = None
    log_measured_error_over_plain: IntervalPart | None = None
    verification: _Verification | None = None


class ScheduleMeta(_Part):
    """The sidecar of a schedule."""

    search: _Search | None = None


def checked(kind: type[_Part], content: Any, path: Path) -> dict[str, Any]:
    """The content, when it is of that kind, by the keys of today. Raises FileError naming what is
    wrong in it.
    """
    content = _by_new_keys(content)
    try:
        kind.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(map(str, problem["loc"])) or "all of it"
        raise FileError(
            f"{path}: {place:.80}: {problem['msg']}; restore the file, or make it again"
        ) from error
    assert isinstance(content, Mapping)
    return dict(content)


def _by_new_keys(content: Any) -> Any:
    if isinstance(content, Mapping):
        return {_OLD.get(key, key): _by_new_keys(value) for key, value in content.items()}
    return content
