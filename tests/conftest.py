"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import launching
import numpy as np
import pytest
from forked import Server
from running import Job

from osp_opt.options import JobOptions

# Before anything loads torch: as many tests at once as there are cores, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

GOLDEN = Path(__file__).parent / "golden"
SLOW = ("cli", "on_device", "pipelines", "run", "system")  # they start processes

TINY_DEFAULTS = {
    "guidance_scale": 2.0,
    "negative_prompt": "",
    "prompt_template": "{}",
    "max_sequence_length": 16,
    "num_frames": 5,
    "height": 16,
    "width": 16,
    "fps": 12,
}


def pytest_configure(config: pytest.Config) -> None:
    """On the CPU, whatever the machine has: only what is asked for by name sees accelerators."""
    gc.disable()  # until all is imported: what importing makes lives on
    if not any("on_device" in str(name) for name in config.args):
        os.environ |= {"CUDA_VISIBLE_DEVICES": "", "ASCEND_RT_VISIBLE_DEVICES": ""}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first, so that at the end no process waits for another with one left."""
    items.sort(key=lambda item: item.path.parent.name not in SLOW)


def pytest_collection_finish() -> None:
    """Never look through the libraries' objects for garbage."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heeded() -> Iterator[None]:
    """Programs inherit what is ignored, and a shell's `&` ignores Ctrl-C, which some tests send."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    return launching.free_port()


@pytest.fixture(scope="session")
def golden() -> Path:
    """The folder of golden data."""
    return GOLDEN


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Runs commands in processes that have everything loaded."""
    return Server(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the bundled model's with random weights, for 5x16x16 videos.

    transformer/ (4 layers, 24 wide, RoPE), vae/ (the released structure, 32 channels),
    text_encoder/ (the golden mT5 and tokenizer), defaults.json.
    """
    import torch
    from official import random_transformer

    from osp_opt.model.vae.autoencoder import CausalVAEModel

    folder = tmp_path_factory.mktemp("tiny-checkpoint")
    config = json.loads((GOLDEN / "vae" / "d4_4x8x8" / "config.json").read_text())
    kept = {name: value for name, value in config.items() if not name.startswith("_")}
    random_transformer().save_pretrained(folder / "transformer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CausalVAEModel(**kept).save_pretrained(folder / "vae")
    shutil.copytree(GOLDEN / "pipeline" / "text_encoder", folder / "text_encoder")
    (folder / "defaults.json").write_text(json.dumps(TINY_DEFAULTS))
    return folder


@pytest.fixture
def model_flags(tiny_checkpoint: Path, tmp_path: Path) -> dict[str, Any]:
    """Options that name the checkpoint, all its parts, and a working folder."""
    return {
        "model_path": str(tiny_checkpoint / "transformer"),
        "ae_path": str(tiny_checkpoint / "vae"),
        "text_encoder_name": str(tiny_checkpoint / "text_encoder"),
        "workdir": tmp_path / "work",
        "device": "cpu",
        "num_frames": 5,
        "height": 16,
        "width": 16,
        "guidance_scale": 2.0,
        "max_sequence_length": 16,
        "fps": 12.0,
    }


@pytest.fixture
def run_job(capsys: pytest.CaptureFixture[str]) -> Job:
    """Runs a job as its worker would, alone; returns what it printed."""

    from osp_opt.base.progress import Progress
    from osp_opt.run.worker import JOBS
    from osp_opt.system.context import WorkerContext
    from osp_opt.system.device import Device
    from osp_opt.system.parallel import Parallel

    def run(options: JobOptions) -> str:
        device = Device.open("cpu")
        options.run_dir.mkdir(parents=True, exist_ok=True)
        progress = Progress(0, verbosity=options.verbosity)
        context = WorkerContext(device, Parallel.open(device), options.run_dir, progress)
        capsys.readouterr()
        JOBS[options.command]()(options, context)
        return capsys.readouterr().out

    return run
