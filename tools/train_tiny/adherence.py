"""How well the bundled model does what prompts ask, read off its videos by the checker.

``python -m tools.train_tiny.adherence --steps 100,50,25,12,6,3`` samples the 120 held-out prompts
with each number of uniform steps, and compares the videos with those of the first number (noise is
coupled); ``--vae`` reads the checker on autoencoded ground truth instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from osp_opt.options import SamplingOptions
from osp_opt.pipelines.load import LoadedModel, load_pipeline
from osp_opt.quality.intervals import mean_ci, wilson
from osp_opt.quality.metrics import psnr
from osp_opt.system.device import Device
from osp_opt.tiny.checker import CheckResult, check
from osp_opt.tiny.prompts import load_prompts
from osp_opt.tiny.specs import ATTRIBUTES
from tools.train_tiny.clips import render_clips, to_uint8
from tools.train_tiny.prompts import split_specs

BATCH = 4


def table(results: Sequence[CheckResult]) -> dict[str, dict[str, float]]:
    """Share of right answers per attribute, and of videos with all right, with intervals."""
    rows = {}
    for name in (*ATTRIBUTES, "all"):
        share = wilson([float(result.right()[name]) for result in results])
        rows[name] = {"right": share.estimate, "low": share.low, "high": share.high}
    return rows


def sample(
    model: LoadedModel, prompts: Sequence[str], num_steps: int, seed: int = 0
) -> list[np.ndarray]:
    """A video uint8 [t h w c] of each prompt, with coupled noise and uniform steps."""
    videos: list[np.ndarray] = []
    for first in range(0, len(prompts), BATCH):
        part = list(prompts[first : first + BATCH])
        videos += model.pipeline(part, num_inference_steps=num_steps, seed=seed).frames.numpy()
    return videos


@torch.no_grad()
def check_reconstructions(model: LoadedModel, seed: int = 0) -> list[CheckResult]:
    """Encode and decode one rendered clip of every held-out combination, and read it."""
    rng = np.random.default_rng(seed)
    vae = model.pipeline.vae
    results = []
    for spec in split_specs()[1]:
        video, _ = render_clips([spec], rng)
        decoded = vae.decode(vae.encode(video).latent_dist.mode()).sample
        results.append(check(to_uint8(decoded)[0].numpy(), spec))
    return results


def show(title: str, rows: dict[str, dict[str, float]]) -> None:
    """Print the percentage of clips whose attribute was read right, for each row."""
    cells = [f"{name} {100 * row['right']:.1f}" for name, row in rows.items()]
    print(f"{title}: {', '.join(cells)} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="checkpoint folder (default: bundled)")
    parser.add_argument("--steps", default="100", help="numbers of steps, comma-separated")
    parser.add_argument("--prompts", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae", action="store_true", help="autoencoded ground truth")
    parser.add_argument("--out", type=Path, help="write the tables as JSON")
    args = parser.parse_args()
    path = str(args.model) if args.model else None
    model = load_pipeline(SamplingOptions(model_path=path), Device.open("cpu", 0))
    tables = {}
    if args.vae:
        tables["vae"] = table(check_reconstructions(model, args.seed))
        show("autoencoded clips", tables["vae"])
    else:
        prompts = load_prompts("evaluation")[: args.prompts]
        reference: list[np.ndarray] = []
        for steps in map(int, args.steps.split(",")):
            videos = sample(model, prompts, steps, args.seed)
            rows = table([check(video, text) for video, text in zip(videos, prompts, strict=True)])
            show(f"{steps} steps, {len(prompts)} prompts", rows)
            if reference:
                found = mean_ci([psnr(*pair) for pair in zip(videos, reference, strict=True)])
                low, high = found.low, found.high
                rows["psnr"] = {"mean": found.estimate, "low": low, "high": high}
                print(f"  {found.estimate:.1f} [{low:.1f}, {high:.1f}] dB to the first", flush=True)
            reference = reference or videos
            tables[str(steps)] = rows
    if args.out:
        args.out.write_text(json.dumps(tables, indent=2) + "\n")


if __name__ == "__main__":
    main()
