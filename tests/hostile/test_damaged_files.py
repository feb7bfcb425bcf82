"""Damaged and hostile files: a clean error of one line or a valid load, never anything else."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damage import damaged, swapped_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import OspOptError
from osp_opt.base.ledger import TrialLedger
from osp_opt.base.video import read_image, read_video, write_image, write_video
from osp_opt.cache.policy import CachePolicy
from osp_opt.calibration import Calibration
from osp_opt.cli.flags import resolve
from osp_opt.generate.manifest import read_takes
from osp_opt.generate.references import load_latents
from osp_opt.model.release import ModelDefaults
from osp_opt.model.weights import read_state_dict
from osp_opt.options import SampleOptions
from osp_opt.pipelines.setting import Setting
from osp_opt.run.folder import load_run, open_run
from osp_opt.sampling.schedule import TimestepSchedule

SETTING = Setting(
    model="f" * 64,
    steps=3,
    timesteps=(999.0, 500.0, 0.0),
    sampler="EulerDiscrete",
    dtype="float32",
    num_frames=5,
    height=16,
    width=16,
    guidance_scale=2.0,
)
PLAN = CachePolicy.explicit({1: [(0, 2)], 2: [(0, 2), (3, 4)], 4: [(0, 2)]}, 6, order=1)
ENTRIES = [{"file": "a.mp4", "prompt": "a ball", "seed": 1, "denoising_seconds": 0.5}]
CONFIG = """
num_frames: 29
sample-method: DDIM
text_prompt: [a red ball, two boats]
tile_overlap_factor: 0.5
sample: {steps: 20, schedule: s.txt, cache_dtype: bf16}
"""
TRIALS = [{"key": f"error m {n} 42 a ball", "values": {"mse": 0.1, "n": [1, 2]}} for n in "ab"]


@dataclass(frozen=True)
class Target:
    """A file that somebody reads: its name, how it is read, and how many damages to try."""

    name: str
    load: Callable[[Path], Any]
    tries: int


def _read_config(path: Path) -> Any:
    return resolve(SampleOptions, {}, path)


def _read_sidecar(path: Path) -> Any:
    meta = read_meta(path.with_name(path.name.removesuffix(".meta.json"))) or {}
    recorded = meta.get("setting")
    return SETTING.differences(recorded) if isinstance(recorded, dict) else None


def _read_folder(path: Path) -> Any:
    return read_state_dict(path.parent)


TARGETS = {
    target.name: target
    for target in (
        Target("searched_schedule.txt", TimestepSchedule.from_file, 90),
        Target("dit_cache_config.json", CachePolicy.from_file, 90),
        Target("plan.json", CachePolicy.from_file, 90),
        Target("config.yaml", _read_config, 110),
        Target("manifest.json", lambda path: read_takes(path.parent), 90),
        Target("trials.jsonl", TrialLedger, 90),
        Target("options.json", load_run, 90),
        Target("s.txt.meta.json", _read_sidecar, 90),
        Target("defaults.json", lambda path: ModelDefaults().updated(path), 90),
        Target("calibration.safetensors", Calibration.load, 70),
        Target("latents.safetensors", load_latents, 70),
        Target("diffusion_pytorch_model.safetensors", _read_folder, 70),
        Target("model.ckpt", _read_folder, 90),
        Target("evil.ckpt", _read_folder, 60),
        Target("image.png", read_image, 60),
        Target("video.mp4", read_video, 40),
    )
}
assert sum(target.tries for target in TARGETS.values()) >= 1000


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.marker,)


@pytest.fixture(scope="module")
def marker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("marker") / "code-ran"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory, marker: Path) -> dict[str, Path]:
    """Every file undamaged, each in a folder of its own."""
    root = tmp_path_factory.mktemp("sound")
    paths = {}
    for name in TARGETS:
        (root / name.replace(".", "-")).mkdir()
        paths[name] = root / name.replace(".", "-") / name
    TimestepSchedule.uniform(5).save(paths["searched_schedule.txt"])
    CachePolicy.four_field(1, 2, 1, 2).save(paths["dit_cache_config.json"])
    PLAN.save(paths["plan.json"])
    paths["config.yaml"].write_text(CONFIG)
    paths["manifest.json"].with_name("a.mp4").write_bytes(b"")
    paths["manifest.json"].write_text(json.dumps({"fps": 12.0, "videos": ENTRIES}))
    paths["trials.jsonl"].write_text("".join(json.dumps(trial) + "\n" for trial in TRIALS))
    with open_run(SampleOptions(workdir=root / "run", text_prompt=("a", "b"), steps=5)) as run:
        paths["options.json"].write_bytes((run.folder / "options.json").read_bytes())
    paths["s.txt.meta.json"].write_text(json.dumps({"setting": SETTING.as_json()}))
    paths["defaults.json"].write_text(
        json.dumps({"fps": 12, "height": 16, "prompt_template": "{}"})
    )
    _calibration().save(paths["calibration.safetensors"])
    latents = torch.arange(32.0).reshape(4, 2, 2, 2)
    paths["latents.safetensors"].write_bytes(save({"latents": latents}))
    state = {"a.weight": torch.ones(4, 4), "a.bias": torch.zeros(4, dtype=torch.bfloat16)}
    paths["diffusion_pytorch_model.safetensors"].write_bytes(save(state))
    torch.save({"state_dict": {"gen_model": state}}, paths["model.ckpt"])
    torch.save({"state_dict": {**state, "x": Payload(marker)}}, paths["evil.ckpt"])
    frames = np.random.default_rng(0).integers(0, 255, (5, 16, 16, 3), np.uint8)
    write_image(paths["image.png"], frames[0])
    write_video(paths["video.mp4"], frames, 12)
    return paths


def _calibration() -> Calibration:
    vectors = np.random.default_rng(0).normal(size=(1, 3, 1, 3, 9)).astype(np.float32)
    gram = vectors @ vectors.swapaxes(-2, -1)
    return Calibration(
        np.array([999.0, 500.0, 10.0]),
        np.array([150.0, 2.0, 0.1]),
        gram[:, 0, 0],
        gram,
        gram,
        (1,),
        ("a ball",),
        (42,),
        {"num_blocks": 2},
    )


def mutated(name: str, data: bytes) -> st.SearchStrategy[bytes]:
    """Damage to the bytes and, in JSON, to the values."""
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in data.splitlines()]
        swaps = st.tuples(*map(swapped_text, lines)).map(lambda made: b"\n".join(made) + b"\n")
        return damaged(data) | swaps
    if name.endswith((".json", ".txt")):
        return damaged(data) | swapped_text(json.loads(data))
    return damaged(data)


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_not_damaged_is_read(name: str, sound: dict[str, Path]) -> None:
    if name == "evil.ckpt":
        with pytest.raises(OspOptError, match="could run code"):
            TARGETS[name].load(sound[name])
    else:
        TARGETS[name].load(sound[name])


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_damage_is_an_error_of_one_line_or_harmless(
    name: str, sound: dict[str, Path], marker: Path
) -> None:
    target = TARGETS[name]
    path = sound[name]
    data = path.read_bytes()

    @settings(
        max_examples=target.tries,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(name, data))
    def check(broken: bytes) -> None:
        path.write_bytes(broken)
        said = "nothing"
        try:
            target.load(path)
        except OspOptError as error:
            said = str(error)
        assert len(said.splitlines()) == 1
        assert not marker.exists()

    try:
        check()
    finally:
        path.write_bytes(data)
