"""Where a schedule or cache came from, and whether that is what is being sampled now. No torch.

The sidecar `<name>.meta.json` beside each artifact says for which model, shape, sampler and steps
it was made and what was measured. A mismatch that makes the artifact meaningless is an error,
another one a warning; a missing sidecar (a file of the reference tool) is one warning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import read_meta, setting_of
from osp_opt.base.errors import OptionError
from osp_opt.pipelines.setting import WORDS, Setting

__all__ = ["check_provenance", "timing_differences", "timing_note"]

_CONDITIONS = {
    "device": "device",
    "layout": "processes that make one video",
    "threads": "threads",
    "dtype": "number format",
    "attention": "attention backend",
    "compile": "compilation",
    "branches": "guidance branches at once",
    "offloaded": "what is kept in host memory",
    "versions": "package versions",
}
"""What decides how long a video takes besides what it is: the fields of ``timed_on``."""


def timing_differences(one: Any, other: Any) -> str | None:
    """In what two records of `Maker.timed_on` differ, in words; None when they agree.

    A speed-up is told only of times that were taken under the same conditions.
    """
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return "nothing says under what conditions the videos were timed"
    different = [
        f"{words} ({_shown(one.get(key))} and {_shown(other.get(key))})"
        for key, words in _CONDITIONS.items()
        if one.get(key) != other.get(key)
    ]
    return f"timed under other conditions: {', '.join(different)}" if different else None


def timing_note(path: Path, what: str, now: Mapping[str, Any]) -> str | None:
    """What to say where the speed-up in the sidecar of `path` was measured otherwise than `now`."""
    recorded = (read_meta(path) or {}).get("timed_on")
    if not isinstance(recorded, Mapping):
        return None
    different = timing_differences(recorded, now)
    if different is None:
        return None
    return f"note: {what} {path}: its speed-up was {different}, there and here"


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {version}" for name, version in value.items())
    return str(value)


def check_provenance(
    path: Path,
    what: str,
    setting: Setting,
    fatal: tuple[str, ...],
    allow_mismatch: bool,
    say: Callable[[str], None],
) -> None:
    """Compare the sidecar of `path` (a `what`: "schedule", "cache policy") with `setting`.

    Differences named in `fatal` raise OptionError unless `allow_mismatch`; everything else is said
    in one line.
    """
    recorded = setting_of(read_meta(path))
    if not recorded:
        say(f"warning: {what} {path} has no provenance file; nothing says what it was made for")
        return
    different = setting.differences(recorded)
    now = setting.as_json()
    told = ", ".join(
        f"another {WORDS[key]}{_values(key, recorded[key], now.get(key))}" for key in different
    )
    if any(key in fatal for key in different) and not allow_mismatch:
        raise OptionError(
            f"{what} {path} was made for {told}; search it for this setting, "
            "or use it anyway with --allow-mismatch"
        )
    if different:
        say(f"warning: {what} {path} was made for {told}")


def _values(key: str, recorded: Any, now: Any) -> str:
    told = key not in ("model", "timesteps", "corrections", "arguments")
    return f" ({recorded}, here {now})" if told else ""
