"""The model of all jobs here, and a server that runs them as processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from processes import Server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # a process forked from a threaded one may hang
        patch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
        made = Server(tmp_path_factory.mktemp("server"))
        made.start()
    return made


@pytest.fixture(scope="session")
def flags(tiny_checkpoint: Path) -> dict[str, Any]:
    """The model and the shape of all jobs."""
    return {
        "model_path": str(tiny_checkpoint),
        "device": "cpu",
        "num_frames": 5,
        "height": 16,
        "width": 16,
        "max_sequence_length": 16,
    }
