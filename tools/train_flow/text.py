"""The text encoder and the tokenizer: the bundled model's, as classes that transformers loads.

Wan reads prompts with UMT5, which is mT5 with a table of relative positions in every layer: the
bundled encoder is one of these once its table is repeated. The tokenizer is the same byte-pair
encoding, written as `tokenizer.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sentencepiece
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import MT5EncoderModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from osp_opt.tiny.prompts import BUNDLED

FOLDER = BUNDLED / "text_encoder"
MAX_TOKENS = 24
_BYTES_END = 259  # pieces before are special ones and bytes, which nothing is merged from
_TABLE = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"


def bundled_as_umt5() -> Any:
    """The bundled text encoder, float32, as UMT5: the same output for the same tokens."""
    encoder: Any = MT5EncoderModel.from_pretrained(FOLDER).float()
    left_out = ("model_type", "architectures", "transformers_version", "dtype")
    config = {k: v for k, v in encoder.config.to_dict().items() if k not in left_out}
    umt5: Any = UMT5EncoderModel(UMT5Config(**config))
    weights = encoder.state_dict()
    tables = {_TABLE.format(i): weights[_TABLE.format(0)] for i in range(config["num_layers"])}
    umt5.load_state_dict({**weights, **tables})
    return umt5.eval()


def bundled_as_fast_tokenizer() -> Any:
    """The bundled tokenizer as a fast one of transformers: the same ids.

    Sentencepiece merges the neighbours that make the lowest piece; here every pair that makes a
    piece is ranked by it.
    """
    pieces: Any = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "spiece.model"))
    vocab = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    merges = [
        (piece[:cut], piece[cut:])
        for piece, index in vocab.items()
        for cut in range(1, len(piece) if index >= _BYTES_END else 1)
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer: Any = Tokenizer(
        models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" +"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocab["</s>"])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@torch.no_grad()
def embed(encoder: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """``[n MAX_TOKENS c]`` as Wan's pipelines make them: nothing stands behind a prompt's end."""
    tokens = tokenizer(
        list(texts),
        padding="max_length",
        max_length=MAX_TOKENS,
        truncation=True,
        return_tensors="pt",
    )
    states: Tensor = encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return states * tokens.attention_mask.unsqueeze(-1)
