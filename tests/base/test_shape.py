"""Video sizes: what fits the VAE, and what a checkpoint was trained for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from osp_opt.base.errors import ShapeError
from osp_opt.base.shape import VideoShape


def test_latent_sizes_of_the_released_checkpoints() -> None:
    assert VideoShape(29, 480, 640).latent() == (8, 60, 80)
    assert VideoShape(93, 720, 1280).latent() == (24, 90, 160)
    assert VideoShape(1, 480, 640).latent_tensor() == (4, 1, 60, 80)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((30, 64, 64), "num_frames is 30.*29 or 33"),
        ((31, 64, 64), "29 or 33"),
        ((0, 64, 64), "num_frames is 0.*try 1"),
        ((-3, 64, 64), "num_frames is -3.*try 1"),
        ((29, 40, 64), "height is 40.*32 or 48"),
        ((29, 64, 8), "width is 8.*16 or 32"),
        ((29, 64, 0), "width is 0"),
    ],
)
def test_odd_sizes_are_refused_with_a_way_out(shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        VideoShape(*shape)


def test_golden_checkpoint_knows_its_shape(golden: Path) -> None:
    config = json.loads((golden / "transformer" / "main" / "config.json").read_text())
    VideoShape(29, 64, 80).check_trained(config)
    for other in (VideoShape(1, 64, 80), VideoShape(29, 80, 64), VideoShape(93, 64, 80)):
        with pytest.raises(ShapeError, match=r"29x64x80.*--allow-untrained-shape"):
            other.check_trained(config)
        other.check_trained(config, allow_untrained=True)


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        ({"sample_size": [60, 80], "sample_size_t": 1}, True),
        ({"sample_size": 60, "sample_size_t": 1}, False),
        ({"sample_size": None, "sample_size_t": 1}, True),
        ({"sample_size": (60, 80), "sample_size_t": 8}, False),
        ({}, True),
    ],
)
def test_image_checkpoints_and_incomplete_configs(config: dict[str, Any], fits: bool) -> None:
    image = VideoShape(1, 480, 640)
    if fits:
        image.check_trained(config)
    else:
        with pytest.raises(ShapeError, match="1x480x640"):
            image.check_trained(config)
