"""`sample --recipe`: one file for sampler, timesteps, corrections and what is reused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from running import Job

from osp_opt.base.artifacts import read_meta, write_meta
from osp_opt.base.errors import FileError, OptionError, PolicyError, RecipeError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.options import SampleOptions
from osp_opt.run.checks import check_before_launch
from osp_opt.sampling.recipe import Recipe, recipe_of
from osp_opt.sampling.schedule import TimestepSchedule

STEPS = [999.0, 700.5, 500.0, 300.25, 100.0, 0.0]
POLICY = CachePolicy.explicit({2: [(1, 3)]}, len(STEPS), 0, GuidancePlan((3, 5), 1))
DATA: dict[str, Any] = {
    "format": "osp-opt/recipe/1",
    "sampler": "EulerAncestralDiscrete",
    "timesteps": STEPS,
    "corrections": [0.0, 0.5, 0.5, 0.5, 0.25, 0.0],
    "cache": POLICY.to_json(),
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "recipe.json"
    path.write_text(json.dumps({**DATA, **changes}))
    return path


def test_reads_what_it_writes(tmp_path: Path) -> None:
    recipe = Recipe.from_file(write(tmp_path))
    assert recipe.policy == POLICY
    recipe.save(tmp_path / "again.json")
    assert Recipe.from_file(tmp_path / "again.json") == recipe
    assert json.loads((tmp_path / "again.json").read_text()) == DATA
    plain = Recipe(sampler="HeunDiscrete", timesteps=STEPS)
    assert plain.policy is None
    assert plain.corrections == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "osp-opt/recipe/9"}, "format is 'osp-opt/recipe/9'"),
        ({"sampler": "PNDM"}, "sampler: is 'PNDM', which takes no recipe"),
        ({"sampler": "Magic"}, "sampler: is 'Magic', which takes no recipe"),
        ({"sampler": "HeunDiscrete"}, "HeunDiscrete takes no corrected steps"),
        ({"timesteps": []}, "timesteps: "),
        ({"timesteps": [0.0] * 1001}, "timesteps: "),
        ({"timesteps": STEPS[::-1]}, "timesteps must strictly descend"),
        ({"timesteps": [1200.0, *STEPS[1:]]}, "must lie in"),
        ({"timesteps": ["999", *STEPS[1:]]}, "timesteps 0: "),
        ({"timesteps": STEPS[1:]}, "6 corrections for 5 steps"),
        ({"corrections": [0, 5, 0, 0, 0, 0]}, "correction 1 is 5"),
        ({"corrections": [0.5] * 6}, "first and the last"),
        ({"corrections": [], "timesteps": STEPS[1:]}, "cache is for 6 steps, and it has 5"),
        ({"cache": {"cache_block_start": 1}}, "no cache_num_blocks"),
        ({"cache": [1]}, "cache: "),
        ({"extra": 1}, "extra: "),
    ],
)
def test_what_is_no_recipe_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(RecipeError) as caught:
        check_before_launch(SampleOptions(recipe=path))
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(DATA).replace("700.5", "NaN"))
    with pytest.raises(FileError, match="not valid JSON"):
        Recipe.from_file(path)


def test_options_that_say_the_same_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path)
    for other in ({"schedule": path}, {"cache": path}, {"steps": 6}):
        with pytest.raises(ValueError, match="--recipe says it too"):
            SampleOptions(recipe=path, **other)
    with pytest.raises(OptionError, match=r"--sampler DDIM: .* was made for EulerAncestral"):
        recipe_of(SampleOptions(recipe=path, sampler="DDIM"))


def sampled(run_job: Job, flags: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The sidecar of the one video that was made, with its path and bytes."""
    options = SampleOptions(text_prompt=("a red dog",), **flags, **more)
    before = set(options.out_dir.glob("*.mp4"))
    printed = run_job(options)
    (path,) = set(options.out_dir.glob("*.mp4")) - before
    return {**(read_meta(path) or {}), "bytes": path.read_bytes(), "path": path, "said": printed}


def test_a_recipe_samples_what_its_parts_say(
    model_flags: dict[str, Any], run_job: Job, tmp_path: Path
) -> None:
    path = write(tmp_path)
    made = sampled(run_job, model_flags, recipe=path)
    assert made["setting"]["corrections"] == DATA["corrections"]
    assert made["setting"]["timesteps"] == STEPS
    assert made["cache"] == DATA["cache"]
    assert "corrected" in made["path"].name
    assert "has no provenance file" in made["said"]
    assert "2 of 6 steps reuse guidance" in made["said"]
    # Without corrections it is what --schedule and --cache make, file for file.
    TimestepSchedule(tuple(STEPS)).save(tmp_path / "schedule.txt")
    POLICY.save(tmp_path / "cache.json")
    flags = {**model_flags, "workdir": tmp_path / "parts"}
    parts = sampled(
        run_job, flags, schedule=tmp_path / "schedule.txt", cache=tmp_path / "cache.json"
    )
    plain = sampled(run_job, model_flags, recipe=write(tmp_path, corrections=[]))
    assert plain["bytes"] == parts["bytes"] != made["bytes"]


def test_a_recipe_of_another_sampler_or_model(
    model_flags: dict[str, Any], run_job: Job, tmp_path: Path
) -> None:
    path = write(tmp_path, sampler="EulerDiscrete")
    made = sampled(run_job, model_flags, recipe=path)
    assert made["setting"]["sampler"] == "EulerDiscrete"
    write_meta(path, {"setting": {**made["setting"], "model": "of another"}})
    options = SampleOptions(text_prompt=("a red dog",), recipe=path, **model_flags)
    with pytest.raises(OptionError, match=r"recipe .* was made for another model"):
        run_job(options)
    run_job(options.model_copy(update={"allow_mismatch": True}))
    write_meta(path, {"setting": made["setting"]})
    alone = {**model_flags, "guidance_scale": 1.0}
    with pytest.raises(PolicyError, match="it reuses guidance, and there is none"):
        run_job(SampleOptions(text_prompt=("a red dog",), recipe=path, **alone))
