"""Folders like those that `sample` leaves, made of rendered clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from osp_opt.base.artifacts import write_json, write_meta
from osp_opt.base.video import Frames, write_lossless, write_video
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration import Calibration
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of
from osp_opt.tiny.specs import ClipSpec
from tools.train_tiny.captions import caption
from tools.train_tiny.clips import render_clips, to_uint8

SPECS = (
    ClipSpec("circle", "red", "white", "left"),
    ClipSpec("square", "blue", "black", "still"),
    ClipSpec("triangle", "green", "white", "up"),
)
STEPS, BLOCKS, VIDEOS = 12, 4, 2  # of the calibration
PROMPTS = tuple(caption(spec) for spec in SPECS)
MANIFEST = {
    "command": "sample",
    "fps": 12,
    "cache": None,
    "setting": {"model": "m" * 64, "steps": 4, "timesteps": [999.0, 700.0, 400.0, 0.0]},
}


TIMED_ON = {
    "device": "cpu: some processor",
    "layout": "cfg=1,sp=1",
    "threads": 2,
    "dtype": "float32",
    "attention": "native",
    "compile": False,
    "branches": 2,
    "versions": {"torch": "2.13.0", "diffusers": "0.42.0"},
}
"""The conditions under which the videos of `sampled` were timed."""


def clips(specs: tuple[ClipSpec, ...] = SPECS, seed: int = 0) -> list[Frames]:
    """One rendered clip of every spec, uint8 [t h w c]."""
    video, _ = render_clips(list(specs), np.random.default_rng(seed))
    return [clip.numpy() for clip in to_uint8(video)]


def noisy(clip: Frames, amount: float, seed: int = 0) -> Frames:
    """The clip with normal noise of that many levels."""
    noise = np.random.default_rng(seed).normal(0.0, amount, clip.shape)
    return np.clip(clip + noise, 0, 255).astype(np.uint8)


def sampled(
    folder: Path,
    videos: list[Frames],
    prompts: tuple[str, ...] = PROMPTS,
    seconds: float = 4.0,
    raw: bool = False,
    timed_on: object = TIMED_ON,
    **manifest: object,
) -> Path:
    """A folder of `sample`: videos, manifest, with `raw` lossless frames."""
    entries = []
    for number, (video, prompt) in enumerate(zip(videos, prompts, strict=True), start=1):
        name = f"{number:03d}.mp4"
        write_video(folder / name, video, 12)
        if raw:
            write_lossless(folder / f"{number:03d}.frames.mkv", video, 12)
        entries.append(
            {
                "file": name,
                "prompt": prompt,
                "seed": 0,
                "denoising_seconds": seconds * (1 + number / 100),
                "timed_on": timed_on,
                **({"frames": f"{number:03d}.frames.mkv"} if raw else {}),
            }
        )
    content = {**MANIFEST, **manifest, "videos": entries}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def calibration(seed: int = 0) -> tuple[Calibration, np.ndarray]:
    """Statistics of random predictions and changes; also the changes g [P K B+1 n]."""
    rng = np.random.default_rng(seed)
    timesteps = np.linspace(999, 0, STEPS)
    denoised = rng.normal(size=(VIDEOS, STEPS, 50)).cumsum(axis=1)
    changes = rng.normal(size=(VIDEOS, STEPS, BLOCKS + 1, 30)).cumsum(axis=2)
    changes[:, 0] = np.nan
    gram = np.einsum("pkan,pkbn->pkab", changes, changes)[:, :, None]
    return Calibration(
        timesteps=timesteps,
        sigmas=sigma_of(timesteps),
        step_gram=np.einsum("pkn,pjn->pkj", denoised, denoised) / 50,
        block_gram=gram,
        guided_block_gram=gram,
        lags=(1,),
        prompts=PROMPTS[:VIDEOS],
        seeds=(0,) * VIDEOS,
        metadata={"setting": {"sampler": "EulerAncestralDiscrete"}},
    ), changes


def searches(place: Path) -> CachePolicy:
    """What calibrate and both searches leave in a working folder, and the policy among it."""
    calibration()[0].save(place / "calibration" / "calibration.safetensors")
    schedule = TimestepSchedule((999.0, 800.0, 600.0, 300.0, 100.0, 0.0))
    steps, cache = place / "search-steps", place / "search-cache"
    schedule.save(steps / "searched_schedule.txt")
    speedup = {"estimate": 2.1, "low": 2.0, "high": 2.2, "count": 3}
    psnr = {"estimate": 41.5, "low": 40.0, "high": 43.0, "count": 4}
    interval = {"estimate": -0.5, "low": -0.8, "high": -0.2, "count": 4}
    write_meta(
        steps / "searched_schedule.txt",
        {
            "search": {
                "log_predicted_error_over_uniform": interval,
                "log_measured_error_over_uniform": interval,
                "verification": {"searched": {"speedup": speedup, "psnr": psnr}},
            }
        },
    )
    point = {"schedule": "uniform", "error": 0.2, "low": 0.1, "high": 0.3, "prompts": 4}
    points = [
        {**point, "steps": 6, "kind": "verified"},
        {**point, "steps": 6, "schedule": "dp", "error": 0.1, "kind": "verified", "low": None},
        {**point, "steps": 5, "schedule": "dp", "kind": "predicted"},
    ]
    about = {"reference_steps": 12, "predictions_scaled_to_uniform": True}
    write_json(steps / "curve.json", {**about, "points": points})
    policy = CachePolicy.four_field(1, 2, 2, 2)
    policy.save(cache / "dit_cache_config.json")
    measured = {
        "speedup": {"estimate": 1.31, "low": 1.29, "high": 1.33, "count": 4},
        "psnr": {"estimate": 41.5, "low": 40.0, "high": 43.0, "count": 4},
    }
    write_meta(cache / "dit_cache_config.json", {"predicted_speedup": 1.3, "measured": measured})
    return policy
