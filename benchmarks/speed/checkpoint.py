"""A checkpoint of the released size and layout with random weights.

Its videos are noise, but it loads, computes and takes memory as the released ones do, so that the
commands can be tried at full size where nothing can be downloaded. Of the text encoder only the
width of its output is the released one's.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import MT5Config, MT5EncoderModel

from benchmarks.speed.subjects import (
    RELEASED_VAE,
    ROPE_L_122,
    SMALL,
    SMALL_VAE,
    random_transformer,
    random_vae,
)
from osp_opt.base.shape import VideoShape
from osp_opt.system.device import Device
from osp_opt.tiny.prompts import BUNDLED

PIECES = 448  # of the bundled model's vocabulary, which is copied
TEXT_LAYERS, TEXT_HEADS = 1, 64


def write(folder: Path, name: str, shape: VideoShape, small: bool = False) -> None:
    """Write ``folder/name`` (transformer, bfloat16), ``folder/vae`` and ``folder/text_encoder``."""
    transformer = SMALL if small else ROPE_L_122
    half, whole = (Device.open("cpu", dtype=dtype) for dtype in ("bfloat16", "float32"))
    random_transformer(transformer, shape, half).save_pretrained(folder / name)
    vae = {**RELEASED_VAE, **(SMALL_VAE if small else {})}
    random_vae(vae, whole).save_pretrained(folder / "vae")
    width = int(transformer["caption_channels"])
    config = MT5Config(
        vocab_size=PIECES,
        d_model=width,
        d_kv=width // TEXT_HEADS,
        d_ff=width,
        num_layers=TEXT_LAYERS,
        num_heads=TEXT_HEADS,
    )
    whole.manual_seed(0)
    MT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    vocabulary = "spiece.model"
    shutil.copyfile(BUNDLED / "text_encoder" / vocabulary, folder / "text_encoder" / vocabulary)
