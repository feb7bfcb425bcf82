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
    """The options with the newest recipe, schedule with the cache made for it, or cache with as
    many of the sampler's own steps, and a line that says so.

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
    own = next((found for found in policies if _of_own_steps(found, maker)), None)
    if own is not None and (not schedules or own.written >= schedules[0].written):
        return _taken(options, steps=len(own.timesteps), cache=own.path)
    return _taken(options, schedule=schedules[0].path) if schedules else (options, "")


def _of_own_steps(policy: _Result, maker: Maker) -> bool:
    """Whether it is for steps that the sampler takes when told no more than their number."""
    steps = policy.timesteps
    if not (isinstance(steps, list) and steps):
        return False
    return agree(steps, list(maker.schedule(len(steps)).timesteps))


def _results(path: Path, maker: Maker) -> Iterator[_Result]:
    """Those of one kind that fit the model and its setting, the newest first."""
    places = path.parent.glob(f"{path.stem}*{path.suffix}")
    files = [p for p in places if p.is_file() and not p.name.endswith(".meta.json")]
    setting = maker.setting(maker.schedule(2))
    for file in sorted(files, key=lambda p: (p.stat().st_mtime, p.name), reverse=True):
        recorded = setting_of(read_meta(file))
        if recorded and not set(setting.differences(recorded)) - _OF_THE_STEPS:
            yield _Result(file, recorded)


def _taken(options: SampleOptions, **found: Path | int) -> tuple[SampleOptions, str]:
    names = (f"{each} steps" if isinstance(each, int) else str(each) for each in found.values())
    text = f"using {' and '.join(names)}; --plain samples without"
    return options.model_copy(update=found), text
