"""`pipe(prompt, seed=s)` makes the frames of `osp-opt sample` for that prompt and seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from running import Job

from osp_opt.base.video import read_video
from osp_opt.options import SampleOptions
from osp_opt.sampling.pipeline import OpenSoraPlanPipeline


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
