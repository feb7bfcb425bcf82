"""How well the bundled model does what prompts ask, read off its videos by the checker.

``python -m osp_opt.tiny.adherence --steps 100,50,25,12,6,3`` samples the 120 held-out prompts with
each number of uniform steps; ``--vae`` reads the checker on autoencoded ground truth instead.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from osp_opt.device import Device
from osp_opt.options import ModelOptions
from osp_opt.sampling.load import LoadedModel, load_pipeline
from osp_opt.sampling.noise import make_noise
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.shape import VideoShape
from osp_opt.tiny.checker import CheckResult, check
from osp_opt.tiny.clips import render_clips, to_uint8
from osp_opt.tiny.prompts import load_prompts
from osp_opt.tiny.specs import ATTRIBUTES, split_specs

BATCH = 4
Z = 1.96  # standard normal quantile of a 95 % interval


def wilson(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); honest also near 0 and 1."""
    share = right / count
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * (share * (1 - share) / count + Z**2 / (4 * count**2)) ** 0.5
    return centre - half, centre + half


def table(results: Sequence[CheckResult]) -> dict[str, dict[str, float]]:
    """Share of right answers per attribute, and of videos with all right, with intervals."""
    rows = {}
    for name in (*ATTRIBUTES, "all"):
        right = sum(result.right()[name] for result in results)
        low, high = wilson(right, len(results))
        rows[name] = {"right": right / len(results), "low": low, "high": high}
    return rows


def check_samples(
    model: LoadedModel, prompts: Sequence[str], num_steps: int, seed: int = 0
) -> list[CheckResult]:
    """Sample each prompt once, with coupled noise and uniform steps, and read the videos."""
    defaults, pipeline = model.defaults, model.pipeline
    shape = VideoShape(defaults.num_frames, defaults.height, defaults.width)
    results = []
    for first in range(0, len(prompts), BATCH):
        part = list(prompts[first : first + BATCH])
        embeddings = pipeline.encode_prompts(
            part, defaults.negative_prompt, defaults.max_sequence_length
        )
        noise = make_noise("coupled", [seed] * len(part), part, (4, *shape.latent()))
        latents = pipeline.generate_latents(
            embeddings,
            shape,
            TimestepSchedule.uniform(num_steps),
            noise,
            guidance_scale=defaults.guidance_scale,
        )
        videos = pipeline.decode_latents(latents).numpy()
        results += [check(video, text) for video, text in zip(videos, part, strict=True)]
    return results


@torch.no_grad()
def check_reconstructions(model: LoadedModel, seed: int = 0) -> list[CheckResult]:
    """Encode and decode one rendered clip of every held-out combination, and read it."""
    rng = np.random.default_rng(seed)
    vae = model.pipeline.vae
    results = []
    for spec in split_specs()[1]:
        video, _ = render_clips([spec], rng)
        decoded = vae.decode(vae.encode(video).mode())
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
    model = load_pipeline(ModelOptions(model_path=path), Device.open("cpu", 0))
    tables = {}
    if args.vae:
        tables["vae"] = table(check_reconstructions(model, args.seed))
        show("autoencoded clips", tables["vae"])
    else:
        prompts = load_prompts("evaluation")[: args.prompts]
        for steps in map(int, args.steps.split(",")):
            tables[str(steps)] = table(check_samples(model, prompts, steps, args.seed))
            show(f"{steps} steps, {len(prompts)} prompts", tables[str(steps)])
    if args.out:
        args.out.write_text(json.dumps(tables, indent=2) + "\n")


if __name__ == "__main__":
    main()
