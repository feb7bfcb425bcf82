"""Whether an artifact is refused, warned about or taken, by what its sidecar says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from folders import TIMED_ON

from osp_opt.base.artifacts import write_meta
from osp_opt.base.errors import OptionError
from osp_opt.generate.provenance import check_provenance, timing_differences, timing_note
from osp_opt.pipelines.setting import Setting

HERE = Setting(
    model="abc",
    steps=3,
    timesteps=(999.0, 500.0, 0.0),
    num_frames=29,
    height=64,
    width=64,
    sampler="EulerAncestralDiscrete",
    guidance_scale=2.0,
    dtype="float32",
)


def said(path: Path, made_for: Setting | None, *, allow: bool = False) -> list[str]:
    lines: list[str] = []
    if made_for is not None:
        write_meta(path, {"setting": made_for.as_json()})
    check_provenance(path, "cache policy", HERE, ("model", "steps"), allow, lines.append)
    return lines


def test_the_same_setting_is_taken_silently(tmp_path: Path) -> None:
    assert said(tmp_path / "cache.json", HERE) == []
    decimals = replace(HERE, timesteps=(999.0, 500.0000001, 0.0))
    assert said(tmp_path / "cache.json", decimals) == []


def test_no_sidecar_is_one_warning(tmp_path: Path) -> None:
    (line,) = said(tmp_path / "cache.json", None)
    assert "no provenance" in line
    assert "cache.json" in line


@pytest.mark.parametrize(
    "other", [replace(HERE, model="xyz"), replace(HERE, steps=2, timesteps=(999.0, 0.0))]
)
def test_what_makes_it_meaningless_is_an_error_that_can_be_overridden(
    tmp_path: Path, other: Setting
) -> None:
    with pytest.raises(OptionError, match=r"cache\.json.*--allow-mismatch"):
        said(tmp_path / "cache.json", other)
    (line,) = said(tmp_path / "cache.json", other, allow=True)
    assert line.startswith("warning")


def test_other_differences_are_one_warning_naming_them(tmp_path: Path) -> None:
    other = replace(HERE, height=128, sampler="DDPM", timesteps=(999.0, 400.0, 0.0))
    (line,) = said(tmp_path / "cache.json", other)
    for words in ("another height (128, here 64)", "another sampler", "another timestep schedule"):
        assert words in line
    assert "dtype" not in line


def test_fields_that_were_not_recorded_do_not_count(tmp_path: Path) -> None:
    write_meta(tmp_path / "cache.json", {"setting": {"model": "abc"}})
    assert said(tmp_path / "cache.json", None) == []


def test_a_speed_up_measured_under_other_conditions_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    assert timing_note(path, "cache policy", TIMED_ON) is None
    write_meta(path, {"timed_on": TIMED_ON})
    assert timing_note(path, "cache policy", TIMED_ON) is None
    note = timing_note(path, "cache policy", {**TIMED_ON, "layout": "cfg=2,sp=4", "threads": 1})
    assert note == (
        f"note: cache policy {path}: its speed-up was timed under other conditions: processes that "
        "make one video (cfg=1,sp=1 and cfg=2,sp=4), threads (2 and 1), there and here"
    )


def test_times_without_conditions_are_not_compared() -> None:
    assert timing_differences(TIMED_ON, dict(TIMED_ON)) is None
    assert "nothing says" in (timing_differences(None, TIMED_ON) or "")
    assert "nothing says" in (timing_differences("edited", "edited") or "")
