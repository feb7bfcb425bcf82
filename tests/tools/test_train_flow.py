"""The second model's training: its text parts are the bundled ones, and its stages run."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import MT5EncoderModel

from osp_opt.model.text.encoder import load_tokenizer
from osp_opt.pipelines.diffusers_pipeline import open_pipeline
from tools.train_flow.autoencoder import refine_decoder, train_autoencoder
from tools.train_flow.text import FOLDER, MAX_TOKENS, bundled_as_fast_tokenizer, bundled_as_umt5
from tools.train_flow.transformer import train_transformer
from tools.train_tiny.captions import all_captions
from tools.train_tiny.prompts import all_specs, split_specs

PADDED = {"max_length": MAX_TOKENS, "padding": "max_length", "truncation": True}


def test_the_fast_tokenizer_gives_the_bundled_ids() -> None:
    texts = ["", *all_captions(all_specs()), "Under the Söa", "  two  spaces ", "A (dog), 3 x."]
    bundled, fast = load_tokenizer(FOLDER), bundled_as_fast_tokenizer()
    expected = bundled(texts, return_tensors="pt", **PADDED)
    found = fast(texts, return_tensors="pt", **PADDED)
    assert torch.equal(found.input_ids, expected.input_ids)
    assert torch.equal(found.attention_mask, expected.attention_mask)


@torch.no_grad()
def test_umt5_is_the_bundled_encoder() -> None:
    tokens = load_tokenizer(FOLDER)(["a red circle", ""], return_tensors="pt", **PADDED)
    bundled = MT5EncoderModel.from_pretrained(FOLDER).float().eval()
    expected = bundled(tokens.input_ids, tokens.attention_mask).last_hidden_state
    found = bundled_as_umt5()(tokens.input_ids, tokens.attention_mask).last_hidden_state
    assert torch.equal(found, expected)


def test_the_stages_leave_a_pipeline_that_diffusers_loads(tmp_path: Path) -> None:
    """A few updates only: it goes on where it stopped, and what is left makes a video."""
    train_autoencoder(tmp_path / "vae", phases=((1, 2, 1, 32), (1, 1, 5, 32)), statistics=2)
    refine_decoder(tmp_path / "vae", phases=((1, 1, 5, 32),))
    specs = split_specs()[0][:2]
    for steps in (1, 2):
        train_transformer(tmp_path, steps=steps, per_spec=1, trained_on=specs)
    size = {"height": 64, "width": 64, "num_frames": 29, "max_sequence_length": MAX_TOKENS}
    pipeline = open_pipeline(tmp_path, arguments=size)
    made = pipeline.denoise("a red circle moves left on a black background", 0, 2)
    assert pipeline.decode(made.latents).shape == (29, 64, 64, 3)
    assert pipeline.name == "WanPipeline"
    assert pipeline.branches() == 2
