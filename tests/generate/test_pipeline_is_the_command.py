"""`pipe(prompt, seed=s)` makes the frames of `osp-opt sample` for that prompt and seed, with the
files of the searches, too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import Job

from osp_opt.base.artifacts import read_meta, write_meta
from osp_opt.base.errors import OptionError
from osp_opt.base.video import read_video
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.options import SampleOptions
from osp_opt.sampling.pipeline import OpenSoraPlanPipeline
from osp_opt.sampling.recipe import Recipe
from osp_opt.sampling.schedule import TimestepSchedule


def test_same_prompt_and_seed_same_frames(
    tiny_checkpoint: Path, tmp_path: Path, run_job: Job
) -> None:
    """Template, negative prompt and guidance are the model's own in both."""
    model = tmp_path / "model"
    model.mkdir()
    for part in ("transformer", "vae", "text_encoder"):
        (model / part).symlink_to(tiny_checkpoint / part)
    known = json.loads((tiny_checkpoint / "defaults.json").read_text())
    own = {"guidance_scale": 3.0, "negative_prompt": "two dogs", "prompt_template": "best, {}."}
    (model / "defaults.json").write_text(json.dumps({**known, **own}))

    options: dict[str, Any] = {"model_path": str(model), "workdir": tmp_path, "device": "cpu"}
    wanted = SampleOptions(
        **options, steps=3, text_prompt=("A red  dog",), seed=7, seeds_per_prompt=2, raw=True
    )
    run_job(wanted)
    (take,) = json.loads((wanted.out_dir / "manifest.json").read_text())["takes"]
    expected = [read_video(wanted.out_dir / entry["frames"]) for entry in take["videos"]]

    pipe = OpenSoraPlanPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    for seed, frames in zip((7, 8), expected, strict=True):
        made = pipe("a red dog", num_inference_steps=3, seed=seed).frames[0]
        assert np.array_equal(made.numpy(), frames)
    two = pipe("A red dog", num_inference_steps=3, seed=7, num_videos_per_prompt=2).frames
    difference = np.abs(two.numpy().astype(int) - np.stack(expected).astype(int))
    assert difference.max() <= 1  # of a batch, last bits may differ


def test_files_of_the_searches(tiny_checkpoint: Path, tmp_path: Path, run_job: Job) -> None:
    """A recipe of another sampler than the pipeline's: the command's frames, or one line."""
    steps = [999.0, 700.0, 400.0, 100.0]
    policy = CachePolicy.explicit({2: [(0, 1)]}, len(steps), guidance=GuidancePlan((3,), order=0))
    recipe = Recipe(
        sampler="DDIM", timesteps=steps, corrections=[0.0, 0.5, 0.5, 0.0], cache=policy.to_json()
    )
    files = {name: tmp_path / f"{name}.json" for name in ("recipe", "cache")}
    recipe.save(files["recipe"])
    policy.save(files["cache"])
    files["schedule"] = tmp_path / "schedule.txt"
    TimestepSchedule(tuple(steps)).save(files["schedule"])

    options: dict[str, Any] = {"model_path": str(tiny_checkpoint), "device": "cpu", "raw": True}
    frames = {}
    for name, using in (("recipe", ["recipe"]), ("parts", ["schedule", "cache"])):
        wanted = SampleOptions(
            **options, text_prompt=("a red dog",), workdir=tmp_path / name,
            **{what: files[what] for what in using},
        )  # fmt: skip
        run_job(wanted)
        (take,) = json.loads((wanted.out_dir / "manifest.json").read_text())["takes"]
        (video,) = take["videos"]
        frames[name] = read_video(wanted.out_dir / video["frames"])
        setting = (read_meta(wanted.out_dir / video["file"]) or {})["setting"]
        for what in using:
            write_meta(files[what], {"setting": setting})

    pipe = OpenSoraPlanPipeline.from_pretrained(tiny_checkpoint)
    pipe.set_progress_bar_config(disable=True)
    made = pipe("a red dog", seed=wanted.seed, recipe=files["recipe"]).frames[0]
    assert np.array_equal(made.numpy(), frames["recipe"])
    parts = {"schedule": files["schedule"], "cache": files["cache"]}
    made = pipe("a red dog", seed=wanted.seed, **parts).frames[0]
    assert np.array_equal(made.numpy(), frames["parts"])
    assert not np.array_equal(frames["parts"], frames["recipe"])
    for name, value in {**parts, "timesteps": steps}.items():
        with pytest.raises(OptionError, match=f"{name} and recipe exclude each other"):
            pipe("a red dog", recipe=files["recipe"], **{name: value})

    # Of the same parts put together by hand nothing is known; of another model it is refused.
    by_hand = OpenSoraPlanPipeline(**pipe.components, defaults=pipe.defaults)
    by_hand.set_progress_bar_config(disable=True)
    with pytest.warns(UserWarning, match="whether it was made for this model"):
        again = by_hand("a red dog", seed=wanted.seed, recipe=files["recipe"]).frames[0]
    assert np.array_equal(again.numpy(), frames["recipe"])
    for what, path in files.items():
        write_meta(path, {"setting": {**setting, "model": "of another"}})
        with pytest.raises(OptionError, match=rf"{path.name} was made for another model"):
            pipe("a red dog", **{what: path})
    pipe("a red dog", recipe=Recipe.from_file(files["recipe"]), output_type="latent")
