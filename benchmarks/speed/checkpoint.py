"""A checkpoint of the released size and layout with random weights.

Its videos are noise, but it loads, computes and takes memory as the released ones do, so that the
commands can be tried at full size where nothing can be downloaded. Of the text encoder only the
width of its output is the released one's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import MT5Config, MT5EncoderModel

from benchmarks.speed.subjects import (
    RELEASED_VAE,
    ROPE_L_122,
    random_transformer,
    random_vae,
)
from osp_opt.device import Device
from osp_opt.sampling.load import BUNDLED
from osp_opt.sampling.shape import VideoShape

PIECES = "spiece.model"
TEXT_LAYERS, TEXT_HEADS = 1, 64


def write(folder: Path, name: str, shape: VideoShape) -> None:
    """Write ``folder/name`` (transformer, bfloat16), ``folder/vae`` and ``folder/text_encoder``."""
    half = Device.open("cpu", dtype="bfloat16")
    random_transformer(ROPE_L_122, shape, half).save_pretrained(folder / name)
    random_vae(RELEASED_VAE, Device.open("cpu", dtype="float32")).save_pretrained(folder / "vae")
    pieces = BUNDLED / "text_encoder" / PIECES
    width = int(ROPE_L_122["caption_channels"])
    config = MT5Config(
        vocab_size=448,
        d_model=width,
        d_kv=width // TEXT_HEADS,
        d_ff=width,
        num_layers=TEXT_LAYERS,
        num_heads=TEXT_HEADS,
    )
    torch.manual_seed(0)
    MT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    shutil.copyfile(pieces, folder / "text_encoder" / PIECES)
