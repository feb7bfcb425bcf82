"""The model of all jobs here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


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
