"""Jobs in this process, on the tiny random checkpoint."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from running import Job

from osp_opt.device import Device
from osp_opt.options import JobOptions
from osp_opt.parallel import Parallel
from osp_opt.progress import Progress
from osp_opt.worker import WorkerContext


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

    def run(options: JobOptions) -> str:
        device = Device.open("cpu")
        options.run_dir.mkdir(parents=True, exist_ok=True)
        context = WorkerContext(device, Parallel.open(device), options.run_dir, Progress(0))
        module = importlib.import_module("osp_opt.jobs." + options.command.replace("-", "_"))
        capsys.readouterr()
        module.run(options, context)
        return capsys.readouterr().out

    return run
