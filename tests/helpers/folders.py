"""Folders like those that `sample` leaves, made of rendered clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from osp_opt.base.video import Frames, write_lossless, write_video
from osp_opt.tiny.captions import caption
from osp_opt.tiny.clips import render_clips, to_uint8
from osp_opt.tiny.specs import ClipSpec

SPECS = (
    ClipSpec("circle", "red", "white", "left"),
    ClipSpec("square", "blue", "black", "still"),
    ClipSpec("triangle", "green", "white", "up"),
)
PROMPTS = tuple(caption(spec) for spec in SPECS)
MANIFEST = {
    "command": "sample",
    "fps": 12,
    "cache": None,
    "setting": {"model": "m" * 64, "steps": 4, "timesteps": [999.0, 700.0, 400.0, 0.0]},
}


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
                **({"frames": f"{number:03d}.frames.mkv"} if raw else {}),
            }
        )
    content = {**MANIFEST, **manifest, "videos": entries}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder
