"""A small checkpoint in the official layout, and the reference tool's five documented lines for it.

The lines are those of msModelSlim's example for Open-Sora-Plan v1.2 in their order, `torchrun ...
-m module` replaced by a subcommand; sizes are smaller, and paths are this checkpoint's.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from forked import Server

from osp_opt.base.video import read_video
from osp_opt.generate.manifest import Take, read_takes
from osp_opt.sampling.schedule import TimestepSchedule

GOLDEN = Path(__file__).parents[1] / "golden"
PROMPTS = ("a red ball", "a boat on a lake", "two dogs run", "a tree in the wind", "rain at night")
STEPS, FEWER = 12, 6  # of the original, and of the searched schedule: 100 and 50 in the document

LAUNCHER = "--nnodes=1 --nproc_per_node {processes} --master_port {port}"
MODEL = """
    --model_path {model}/29x480p --version 29x480p --num_frames 5 --height 16 --width 16
    --cache_dir ../cache_dir --text_encoder_name {model}/mt5 --text_prompt {prompts}
    --ae CausalVAEModel_D4_4x8x8 --ae_path {model}/vae
"""
SAMPLING = """
    --fps 24 --guidance_scale 7.5 --enable_tiling --tile_overlap_factor 0.125 --save_memory
    --max_sequence_length 16 --sample_method EulerAncestralDiscrete --model_type dit
"""
VIDEOS = f"--save_img_path {{videos}} --num_sampling_steps {STEPS}"
LINES = {
    "videos": f"{{first}} {VIDEOS}",
    "steps": f"search-steps --num_sampling_steps {FEWER} --save_dir ./schedule "
    "--videos_path {videos} --neighbour_type uniform --monte_carlo_iters 5",
    "faster videos": f"sample {VIDEOS} --schedule_timestep ./schedule/searched_schedule.txt",
    "cache": f"search-cache --num_sampling_steps {STEPS} --search_type dit_cache "
    "--cache_ratio 1.3 --cache_save_path ./cache_config",
    "cached videos": f"sample {VIDEOS} --dit_cache_config ./cache_config/dit_cache_config.json",
}


def random_transformer(layers: int = 4) -> Any:
    """24 wide, RoPE, for 5x16x16 videos; its captions are the golden text encoder's."""
    import torch

    from osp_opt.model.transformer import OpenSoraT2V

    text_config = json.loads((GOLDEN / "pipeline" / "text_encoder" / "config.json").read_text())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OpenSoraT2V(
            num_layers=layers,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=text_config["d_model"],
            sample_size_t=2,
            sample_size=(2, 2),
        )


def write_checkpoint(folder: Path) -> Path:
    """The folders 29x480p, vae (with a .ckpt, as released) and mt5, with random weights."""
    # Three blocks: with fewer a busy machine may find that the ratio asked for cannot be reached.
    random_transformer(layers=3).save_pretrained(folder / "29x480p")
    shutil.copytree(GOLDEN / "vae" / "d4_4x8x8", folder / "vae")
    shutil.copytree(GOLDEN / "pipeline" / "text_encoder", folder / "mt5")
    return folder


def documented_line(
    name: str,
    *,
    model: Path,
    port: int,
    first: str = "sample",
    prompts: str = "prompts.txt",
    videos: str = "./sample_video_test",
    processes: int = 1,
) -> list[str]:
    """Arguments of `osp-opt` for one of LINES."""
    command, _, own = LINES[name].format(first=first, videos=shlex.quote(videos)).partition(" ")
    known = {"model": model, "prompts": prompts, "port": port, "processes": processes}
    shared = " ".join((LAUNCHER, MODEL, SAMPLING)).format(**known)
    return [command, *shlex.split(shared), *shlex.split(own)]


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen[str]:
    """`osp-opt` as a process of its own in `folder`."""
    return subprocess.Popen(
        [sys.executable, "-m", "osp_opt", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Walk:
    """A folder in which the lines are run."""

    def __init__(self, folder: Path, model: Path, port: int, **variation: Any) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
        self.folder = folder
        self.known = {"model": model, "port": port, **variation}

    def run(self, name: str) -> str:
        """Run a line to its end; what it printed."""
        process = start(documented_line(name, **self.known), self.folder)
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, (name, out, err)
        return out + err

    def run_forked(self, server: Server, name: str) -> str:
        """The same, in processes that have everything loaded already."""
        return server.line(*documented_line(name, **self.known), current=self.folder)

    @property
    def videos(self) -> Path:
        return self.folder / self.known.get("videos", "sample_video_test")

    def assert_promised(self) -> None:
        """What the reference tool's documentation says that the lines leave."""
        schedule = json.loads((self.folder / "schedule" / "searched_schedule.txt").read_text())
        assert (len(schedule), schedule[0], schedule[-1]) == (FEWER, 0.0, 0.999)
        assert schedule == sorted(schedule)
        cache = json.loads((self.folder / "cache_config" / "dit_cache_config.json").read_text())
        fields = (
            "cache_block_start",
            "cache_num_blocks",
            "cache_step_start",
            "cache_step_interval",
        )
        assert sorted(cache) == sorted(fields)
        assert all(type(value) is int for value in cache.values())
        takes = read_takes(self.videos)
        assert [[video.prompt for video in take.videos] for take in takes] == [list(PROMPTS)] * 3
        assert len({video.path for take in takes for video in take.videos}) == 3 * len(PROMPTS)
        plain, searched, cached = _by_kind(takes)
        assert (len(plain.timesteps), len(searched.timesteps)) == (STEPS, FEWER)
        found = TimestepSchedule(tuple(1000 * value for value in reversed(schedule)))
        assert searched.timesteps == pytest.approx(list(found.timesteps), abs=1e-3)
        assert cached.settings is not None
        assert cached.settings["cache"] == cache
        for take in takes:
            for video in take.videos:
                assert read_video(video.path).shape == (5, 16, 16, 3)

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Time and content of every video and result of a self."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            if (
                path.suffix in (".mp4", ".txt", ".safetensors")
                or path.name == "dit_cache_config.json"
            ):
                name = path.relative_to(self.folder).as_posix()
                found[name] = path.stat().st_mtime_ns, path.read_bytes()
        return found


def _by_kind(takes: Iterable[Take]) -> tuple[Take, Take, Take]:
    """Uncached full length, fewer steps, cached."""
    cached = [take for take in takes if (take.settings or {}).get("cache")]
    fewer = [take for take in takes if len(take.timesteps) == FEWER]
    plain = [take for take in takes if take not in (*cached, *fewer)]
    return plain[0], fewer[0], cached[0]
