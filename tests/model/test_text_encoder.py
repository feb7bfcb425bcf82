"""Prompt preprocessing, tokenizer and text encoder against what the original code made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_opt.base.errors import CheckpointError
from osp_opt.model.text.encoder import (
    NEGATIVE_PROMPT,
    POSITIVE_TEMPLATE,
    clean_caption,
    load_text_encoder,
    load_tokenizer,
    preprocess_prompt,
    tokenize,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "pipeline"
TEXT_ENCODER = GOLDEN / "text_encoder"
TEXT = json.loads((GOLDEN / "text_preprocessing.json").read_text(encoding="utf-8"))
CASES = TEXT["cases"]
NAMES = [case["raw"].strip()[:24] or "empty" for case in CASES]


def test_official_prompts_byte_for_byte() -> None:
    assert TEXT["positive_template"] == POSITIVE_TEMPLATE
    assert TEXT["negative_prompt"] == NEGATIVE_PROMPT


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_preprocessing_is_the_original(case: dict) -> None:
    assert preprocess_prompt(case["raw"]) == case["clean_caption_true"]
    assert preprocess_prompt(case["raw"], clean=False) == case["clean_caption_false"]


@pytest.mark.parametrize("case", CASES, ids=NAMES)
def test_token_ids_are_the_slow_tokenizers(case: dict) -> None:
    """Among the cases are some whose characters the vocabulary lacks: byte pieces, not <unk>."""
    ids, mask = tokenize(load_tokenizer(TEXT_ENCODER), [case["clean_caption_true"]], 48)
    assert ids.tolist() == [case["input_ids_max48"]]
    assert mask.tolist() == [case["attention_mask"]]


def test_embeddings_are_the_originals() -> None:
    golden = load_file(GOLDEN / "text_embeds.safetensors")
    model = load_text_encoder(TEXT_ENCODER)
    with torch.no_grad():
        embeds = model(golden["input_ids"], attention_mask=golden["attention_mask"])[0]
    torch.testing.assert_close(embeds, golden["last_hidden_state"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>a <b>red</b> ball</p>", "a red ball"),
        ("a<script>var x = 1</script> cat", "a cat"),
        ("a <template><i>hidden</i></template>dog", "a dog"),
        ("caf&eacute; &#65; &#x42;", "café a b"),
        ("a <!-- note --> bird", "a bird"),
        ("<![CDATA[fish]]> swims", "fish swims"),
        ("1 < 2", "1 < 2"),
    ],
)
def test_markup(markup: str, text: str) -> None:
    """Expected values by hand, confirmed with Beautiful Soup in upstream's own cleaning."""
    assert preprocess_prompt(markup) == text


@pytest.mark.parametrize(
    "prompt",
    [
        "".join(map(chr, range(256))),
        "\x00\x1b[31mred\x1b[0m\u200b\u202e",
        "\ud83d half a character",
        "&#" + "9" * 5000 + "; and \uff06#" + "9" * 5000 + "a",
        "<![if x]",
        "<a " * 200,
        "a cat. " * 15_000,
        "\U0001f600" * 25_000,
        "</s><pad>" * 100,
    ],
    ids=lambda prompt: ascii(prompt[:12]),
)
@pytest.mark.parametrize("clean", [True, False])
def test_any_string_becomes_a_full_row(prompt: str, clean: bool) -> None:
    tokenizer = load_tokenizer(TEXT_ENCODER)
    ids, mask = tokenize(tokenizer, [preprocess_prompt(prompt, clean)], 512)
    assert ids.shape == mask.shape == (1, 512)
    assert ids.min() >= 0
    assert ids.max() < len(tokenizer)
    end = int(mask.sum()) - 1
    assert ids[0, end] == tokenizer.eos_token_id
    assert mask[0, : end + 1].all()
    assert (ids[0, end + 1 :] == tokenizer.pad_token_id).all()


def test_second_pass_removes_what_the_first_uncovers() -> None:
    assert clean_caption("img%2525252ejpg") != preprocess_prompt("img%2525252ejpg")


def test_tokens_become_text_again() -> None:
    tokenizer = load_tokenizer(TEXT_ENCODER)
    text = "一只猫 runs over the field"
    assert tokenizer.decode(tokenizer([text], max_length=64)["input_ids"][0]) == text


def test_other_dtype() -> None:
    assert load_text_encoder(TEXT_ENCODER, torch.bfloat16).dtype == torch.bfloat16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "encoder"
    shutil.copytree(TEXT_ENCODER, copy)
    return copy


@pytest.mark.parametrize("content", [None, b"", b"not a model", b"\xff" * 4096])
def test_bad_tokenizer_files(folder: Path, content: bytes | None) -> None:
    pieces = folder / "spiece.model"
    pieces.unlink()
    if content is not None:
        pieces.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"spiece\.model"):
        load_tokenizer(folder)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b'{"added_tokens_decoder": {"a": 1}}'])
def test_bad_tokenizer_config(folder: Path, content: bytes) -> None:
    (folder / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        load_tokenizer(folder)


def test_truncated_tokenizer_never_gives_a_foreign_error(folder: Path) -> None:
    whole = (folder / "spiece.model").read_bytes()
    for size in range(0, len(whole), len(whole) // 40):
        (folder / "spiece.model").write_bytes(whole[:size])
        try:
            load_tokenizer(folder).encode("a cat")
        except CheckpointError:
            continue


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="text encoder"):
        load_text_encoder(folder)


def test_missing_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="text encoder"):
        load_text_encoder(folder)


def test_incomplete_weights_are_not_filled_with_random_ones(folder: Path) -> None:
    from safetensors.torch import save_file

    weights = load_file(folder / "model.safetensors")
    dropped = next(key for key in weights if "layer.0" in key)
    save_file({k: v for k, v in weights.items() if k != dropped}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        load_text_encoder(folder)


def test_other_model_class(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "clip_text_model"}))
    with pytest.raises(CheckpointError, match="clip_text_model"):
        load_text_encoder(folder)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_tokenizer(tmp_path / "nowhere")
