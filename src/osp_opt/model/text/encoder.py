"""Prompts to token ids to embeddings: the mT5 encoder and the tokenizer it was trained with.

Shapes: b prompts, l tokens (padded), c embedding channels.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
import sentencepiece
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import BatchEncoding, MT5EncoderModel

from osp_opt.base.artifacts import read_bytes, read_json, write_json
from osp_opt.base.errors import CheckpointError, file_errors_as, first_line
from osp_opt.model.text.captions import (
    MAX_SEQUENCE_LENGTH,
    NEGATIVE_PROMPT,
    POSITIVE_TEMPLATE,
    clean_caption,
    preprocess_prompt,
)
from osp_opt.model.weights import check_sizes, regular_file, warn_if_writable

__all__ = [
    "MAX_SEQUENCE_LENGTH",
    "NEGATIVE_PROMPT",
    "POSITIVE_TEMPLATE",
    "PieceTokenizer",
    "clean_caption",
    "load_text_encoder",
    "load_tokenizer",
    "preprocess_prompt",
    "tokenize",
]

Tokenizer = Callable[..., Any]
"""Called as Hugging Face tokenizers are; returns ``input_ids`` and ``attention_mask``."""

_MOST_LAYERS = 1024  # of an encoder; mT5-xxl has 24, and 64 heads
_PIECES = "spiece.model"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_MAX_PIECES_BYTES = 64 * 2**20  # mT5's own model is 4.3 MB
_SPECIAL = ("<pad>", "</s>", "<unk>")
_SURROGATES = re.compile("[\ud800-\udfff]")
_LOAD_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    KeyError,
    TypeError,
    EOFError,
    struct.error,
    SafetensorError,
    pickle.UnpicklingError,
)


class PieceTokenizer:
    """The slow T5 tokenizer (its ``legacy`` behaviour) on the sentencepiece library itself.

    transformers 5 has only a fast T5 tokenizer, which turns a character outside the vocabulary
    into ``<unk>``; the checkpoints were trained, and upstream samples, with byte pieces there.
    Special tokens written out in a prompt count as such, as upstream.

    pieces: serialized sentencepiece model. special: further special tokens, text -> id.
    Raises ValueError when the model cannot be parsed or lacks the pad or end token.
    """

    def __init__(self, pieces: bytes, special: dict[str, int] | None = None) -> None:
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(pieces)
        except (RuntimeError, OSError) as error:
            raise ValueError("not a sentencepiece model") from error
        self._processor = processor
        self._special = {text: processor.PieceToId(text) for text in _SPECIAL} | (special or {})
        self.pad_token_id = self._special["<pad>"]
        self.eos_token_id = self._special["</s>"]
        if processor.unk_id() in (self.pad_token_id, self.eos_token_id):
            raise ValueError("its vocabulary has no <pad> or no </s>")
        longest_first = sorted(self._special, key=len, reverse=True)
        self._splitter = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the files that `load_tokenizer` reads."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        pieces: bytes = self._processor.serialized_model_proto()
        (Path(folder) / _PIECES).write_bytes(pieces)
        declared = {str(index): {"content": text} for text, index in self._special.items()}
        write_json(Path(folder) / _TOKENIZER_CONFIG, {"added_tokens_decoder": declared})

    def __len__(self) -> int:
        return int(self._processor.GetPieceSize())

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, without the end token. Any string is accepted."""
        text = _SURROGATES.sub("\ufffd", text)  # half a character: not encodable as UTF-8
        ids: list[int] = []
        for part in self._splitter.split(text):
            if part in self._special:
                ids.append(self._special[part])
            elif part:
                ids.extend(self._processor.EncodeAsIds(part))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ``ids``; special tokens are left out."""
        special = set(self._special.values())
        return str(self._processor.DecodeIds([int(i) for i in ids if int(i) not in special]))

    def __call__(
        self,
        text: str | list[str],
        *,
        max_length: int = MAX_SEQUENCE_LENGTH,
        padding: str = "max_length",
        truncation: bool = True,
        add_special_tokens: bool = True,
        return_attention_mask: bool = True,
        return_tensors: str = "pt",
    ) -> BatchEncoding:
        """Tokenize prompts -> ``input_ids`` and ``attention_mask``, int64 [b l].

        Takes the keywords of a Hugging Face tokenizer with the values that sampling uses, and no
        others: the end token is added, longer prompts are cut, shorter ones padded to
        ``max_length``. Raises ValueError for other values.
        """
        if (padding, return_tensors) != ("max_length", "pt") or not (
            truncation and add_special_tokens and return_attention_mask
        ):
            raise ValueError("PieceTokenizer only pads and cuts to max_length and returns tensors")
        prompts = [text] if isinstance(text, str) else text
        ids = torch.full((len(prompts), max_length), self.pad_token_id, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            tokens = self.encode(prompt)[: max_length - 1]
            if tokens[-1:] != [self.eos_token_id]:  # as upstream, one that is there will do
                tokens.append(self.eos_token_id)
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})


def tokenize(
    tokenizer: Tokenizer, prompts: list[str], max_length: int = MAX_SEQUENCE_LENGTH
) -> tuple[Tensor, Tensor]:
    """Preprocessed prompts -> (input ids, attention mask), both int64 [b l], l = ``max_length``."""
    encoded = tokenizer(
        prompts,
        max_length=max_length,
        padding="max_length",
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
        return_tensors="pt",
    )
    return encoded["input_ids"], encoded["attention_mask"]


def load_tokenizer(path: str | Path, cache_dir: str | Path | None = None) -> PieceTokenizer:
    """Load the tokenizer of a text encoder: ``spiece.model``, and special tokens if declared.

    path: local folder or hub id; cache_dir: where downloads go (default: the hub's own cache).
    Raises CheckpointError.
    """
    folder = _local_folder(path, cache_dir)
    with file_errors_as(CheckpointError):
        pieces = read_bytes(folder / _PIECES, "tokenizer", _MAX_PIECES_BYTES)
    try:
        return PieceTokenizer(pieces, _declared_tokens(folder / _TOKENIZER_CONFIG))
    except ValueError as error:
        raise CheckpointError(f"tokenizer {folder / _PIECES}: {error}") from error


def load_text_encoder(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    cache_dir: str | Path | None = None,
) -> MT5EncoderModel:
    """Load the mT5 encoder in evaluation mode on the CPU.

    path: local folder or hub id; a whole mT5 will do, its decoder is not read. ``model(ids,
    attention_mask=mask)[0]`` are the embeddings [b l c]. Raises CheckpointError.
    """
    path = str(path).rstrip("/") or "/"
    source = Path(path).expanduser()
    folder = _local_folder(path, cache_dir)
    config = _json_object(folder / "config.json")
    if config.get("model_type") != "mt5":
        found = config.get("model_type", "unknown")
        raise CheckpointError(f"{folder / 'config.json'}: model_type is {found}, expected mt5")
    try:
        check_sizes(config, most_layers=_MOST_LAYERS)
    except ValueError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from error
    if source.is_dir():
        # Hidden files and folders are nobody's weights; what else is no file would be waited for.
        found = [f for f in sorted(source.iterdir()) if f.name[0] != "." and not f.is_dir()]
        warn_if_writable(map(regular_file, found))
    try:
        loaded: Any = MT5EncoderModel.from_pretrained(
            str(folder) if source.is_dir() else str(path),
            dtype=dtype,
            cache_dir=cache_dir,
            output_loading_info=True,
        )
    except _LOAD_ERRORS as error:
        raise CheckpointError(f"text encoder {path}: {first_line(error)}") from error
    model: MT5EncoderModel = loaded[0]
    info: dict[str, Any] = loaded[1]
    # transformers fills what is missing with random numbers and only warns.
    missing = sorted({*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])})
    if missing:
        raise CheckpointError(
            f"text encoder {path}: {len(missing)} weights missing or of another shape, "
            f"first {missing[0]}; the file is incomplete or another model's"
        )
    model.train(False)
    return model


def _local_folder(path: str | Path, cache_dir: str | Path | None) -> Path:
    """The folder with configuration and tokenizer; of a hub repository, only those are fetched."""
    path = str(path).rstrip("/") or "/"  # people complete names of folders with a slash
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    try:
        files = huggingface_hub.snapshot_download(
            str(path),
            cache_dir=cache_dir,
            allow_patterns=["config.json", _PIECES, _TOKENIZER_CONFIG],
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"text encoder {path}: not a folder here, and the hub did not deliver it "
            f"({first_line(error)})"
        ) from error
    return Path(files)


def _json_object(file: Path) -> dict[str, Any]:
    with file_errors_as(CheckpointError):
        value = read_json(file, "text encoder config")
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: not a JSON object")
    return value


def _declared_tokens(file: Path) -> dict[str, int]:
    """Special tokens of a tokenizer_config.json, text -> id; none when there is no such file."""
    if not file.exists():
        return {}
    declared = _json_object(file).get("added_tokens_decoder", {})
    try:
        return {str(token["content"]): int(index) for index, token in declared.items()}
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: added_tokens_decoder is malformed") from error
