"""What the searches left in the working folder, for `sample` to use where nobody says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import read_meta, setting_of
from osp_opt.options import OptimizeOptions, SampleOptions, SearchCacheOptions, SearchStepsOptions
from osp_opt.pipelines.maker import Maker
from osp_opt.pipelines.setting import agree

__all__ = ["with_found"]

_OF_THE_STEPS = {"steps", "timesteps", "corrections"}  # a schedule's own, which it brings along
_CHOSEN = {"recipe", "schedule", "cache", "steps", "plain"}


@dataclass(frozen=True)
class _Result:
    path: Path
    setting: dict[str, Any]

    @property
    def written(self) -> float:
        """Seconds since the epoch at which it was written."""
        return self.path.stat().st_mtime

    @property
    def timesteps(self) -> Any:
        return self.setting.get("timesteps")


def with_found(options: SampleOptions, maker: Maker) -> tuple[SampleOptions, str]:
    """The options with the newest recipe, or schedule and cache made for it, and a line that says
    so.

    Only what was made for this model and setting counts, and only where no option says which steps
    or cache to take. The line is empty where nothing was found.
    """
    if options.model_fields_set & _CHOSEN:
        return options, ""
    place = {"workdir": options.workdir}
    recipes = list(_results(OptimizeOptions(**place).recipe_path, maker))
    schedules = list(_results(SearchStepsOptions(**place).schedule_path, maker))
    policies = list(_results(SearchCacheOptions(**place).policy_path, maker))
    others = [found.written for found in (*schedules, *policies)]
    if recipes and recipes[0].written >= max(others, default=0.0):
        return _taken(options, recipe=recipes[0].path)
    for policy in policies:
        fitting = [found for found in schedules if agree(policy.timesteps, found.timesteps)]
        if fitting:
            return _taken(options, schedule=fitting[0].path, cache=policy.path)
    if schedules:
        return _taken(options, schedule=schedules[0].path)
    uniform = list(maker.schedule(options.steps).timesteps)
    for policy in policies:
        if agree(policy.timesteps, uniform):
            return _taken(options, cache=policy.path)
    return options, ""


def _results(path: Path, maker: Maker) -> Iterator[_Result]:
    """Those of one kind that fit the model and its setting, the newest first."""
    places = path.parent.glob(f"{path.stem}*{path.suffix}")
    files = [p for p in places if p.is_file() and not p.name.endswith(".meta.json")]
    setting = maker.setting(maker.schedule(2))
    for file in sorted(files, key=lambda p: (p.stat().st_mtime, p.name), reverse=True):
        recorded = setting_of(read_meta(file))
        if recorded and not set(setting.differences(recorded)) - _OF_THE_STEPS:
            yield _Result(file, recorded)


def _taken(options: SampleOptions, **found: Path) -> tuple[SampleOptions, str]:
    names = " and ".join(str(path) for path in found.values())
    return options.model_copy(update=found), f"using {names}; --plain samples without"
