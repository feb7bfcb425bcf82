"""The bundled model's tokenizer and text encoder configuration: mT5 in miniature.

Released checkpoints read prompts with mT5-xxl and its sentencepiece vocabulary; the bundled model
keeps both classes and file formats at a size that a few hundred captions can train.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from osp_opt.base.artifacts import atomic_write_bytes, write_json
from tools.train_tiny.captions import all_captions
from tools.train_tiny.prompts import all_specs

if TYPE_CHECKING:
    from transformers import MT5Config

#: 3 special pieces, 256 bytes, and the pieces that byte-pair merging makes of the captions.
VOCAB_SIZE = 448

_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
_SPECIAL_IDS = {"pad_token": 0, "eos_token": 1, "unk_token": 2}


def _added_token(content: str) -> dict[str, Any]:
    return {
        "content": content,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
    }


def train_sentencepiece() -> bytes:
    """Train the sentencepiece model on every phrasing of every clip -> the model file's bytes.

    Byte-pair encoding, not unigram: merging makes each attribute word one piece, which a two-layer
    encoder can learn from; bytes stand in for whatever the captions never contain. Held-out clips
    add no words that training clips lack, so nothing leaks from them.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(all_captions(all_specs())),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        shuffle_input_sentence=False,
        num_threads=1,
        pad_id=_SPECIAL_IDS["pad_token"],
        eos_id=_SPECIAL_IDS["eos_token"],
        unk_id=_SPECIAL_IDS["unk_token"],
        bos_id=-1,
        pad_piece=_SPECIAL["pad_token"],
        eos_piece=_SPECIAL["eos_token"],
        unk_piece=_SPECIAL["unk_token"],
        minloglevel=2,
    )
    return model.getvalue()


def build_tokenizer(out_dir: Path) -> int:
    """Write spiece.model, tokenizer_config.json and special_tokens_map.json -> vocabulary size.

    The same bytes every time.
    """
    import sentencepiece

    out_dir.mkdir(parents=True, exist_ok=True)
    model = train_sentencepiece()
    atomic_write_bytes(out_dir / "spiece.model", model)
    write_json(
        out_dir / "special_tokens_map.json",
        {name: _added_token(content) for name, content in _SPECIAL.items()},
    )
    decoder = {
        str(_SPECIAL_IDS[name]): _added_token(content) | {"special": True}
        for name, content in _SPECIAL.items()
    }
    write_json(
        out_dir / "tokenizer_config.json",
        {
            "add_prefix_space": True,
            "added_tokens_decoder": decoder,
            "additional_special_tokens": [],
            "clean_up_tokenization_spaces": True,
            "extra_ids": 0,
            "legacy": True,
            "model_max_length": 512,
            "sp_model_kwargs": {},
            "tokenizer_class": "T5Tokenizer",
            **_SPECIAL,
        },
    )
    return int(sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size())


def build_text_encoder_config(vocab_size: int) -> MT5Config:
    """The bundled text encoder: two mT5 layers, 64 wide (4 heads of 16), gated GELU.

    `vocab_size` is what build_tokenizer returned; it is rounded up to a multiple of 8.
    """
    from transformers import MT5Config

    return MT5Config(
        vocab_size=-(-vocab_size // 8) * 8,
        d_model=64,
        d_kv=16,
        num_heads=4,
        d_ff=128,
        num_layers=2,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=32,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=_SPECIAL_IDS["pad_token"],
        eos_token_id=_SPECIAL_IDS["eos_token"],
        decoder_start_token_id=_SPECIAL_IDS["pad_token"],
        tie_word_embeddings=False,
    )
