"""The bundled tokenizer and text encoder configuration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece
import torch

from osp_opt.tiny.specs import BACKGROUNDS, COLORS, MOTIONS, SHAPES
from tools.train_tiny.captions import all_captions
from tools.train_tiny.prompts import all_specs
from tools.train_tiny.text import build_text_encoder_config, build_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "pipeline" / "text_encoder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def pieces(folder: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))


@pytest.mark.parametrize("word", [*SHAPES, *COLORS, *BACKGROUNDS, *MOTIONS])
def test_every_attribute_word_is_one_piece(
    word: str, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    assert pieces.encode(f"a {word} a", out_type=str) == ["▁a", f"▁{word}", "▁a"]


def test_captions_fit_24_tokens_and_other_text_falls_back_to_bytes(
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    assert max(len(pieces.encode(text)) for text in all_captions(all_specs())) + 1 <= 24
    odd = pieces.encode("ein grünes Zebra")
    assert pieces.unk_id() not in odd
    assert pieces.decode(odd) == "ein grünes Zebra"


def test_special_pieces_and_files_are_like_a_released_tokenizer(
    folder: Path, pieces: sentencepiece.SentencePieceProcessor
) -> None:
    assert [pieces.id_to_piece(i) for i in range(3)] == ["<pad>", "</s>", "<unk>"]
    assert pieces.id_to_piece(3) == "<0x00>"
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        ours, golden = (json.loads((f / name).read_text()) for f in (folder, GOLDEN))
        ours.pop("model_max_length", None)
        golden.pop("model_max_length", None)
        assert ours == golden


def test_building_twice_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    assert build_tokenizer(tmp_path) == 448
    for file in folder.iterdir():
        assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_text_encoder_of_that_configuration_runs(
    pieces: sentencepiece.SentencePieceProcessor,
) -> None:
    from transformers import MT5EncoderModel

    config = build_text_encoder_config(pieces.get_piece_size())
    model = MT5EncoderModel(config).eval()
    ids = torch.tensor([[*pieces.encode("a red circle moves left"), 1]])
    with torch.no_grad():
        assert model(ids).last_hidden_state.shape == (1, ids.shape[1], 64)
    assert (config.num_layers, config.num_heads, config.d_kv, config.d_ff) == (2, 4, 16, 128)
    assert config.is_gated_act
