"""Prompts from the command line or from a file (no torch)."""

from __future__ import annotations

from pathlib import Path

from osp_opt.base.artifacts import read_bytes
from osp_opt.base.errors import FileError
from osp_opt.options import SamplingOptions

PROMPT_FILE_MAX_BYTES = 16 * 2**20


def given_prompts(options: SamplingOptions) -> list[str] | None:
    """The prompts that the user gave, in order; None when there are none (use the bundled ones).

    Raises FileError for a prompt file that cannot be read or holds no prompt.
    """
    if options.prompt_file is not None:
        return read_prompt_file(options.prompt_file)
    return [_one_line(text) for text in options.text_prompt] or None


def read_prompt_file(path: str | Path) -> list[str]:
    """One prompt per line; blank lines are skipped. Raises FileError, also when none is left."""
    data = read_bytes(path, "prompt file", PROMPT_FILE_MAX_BYTES)
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise FileError(f"prompt file {path}: not UTF-8 text ({error.reason})") from error
    prompts = [_one_line(line) for line in lines if line.strip()]
    if not prompts:
        raise FileError(f"prompt file {path}: holds no prompt; write one prompt per line")
    return prompts


def _one_line(text: str) -> str:
    """Control characters, which no tokenizer was trained on, become spaces."""
    return "".join(char if char.isprintable() else " " for char in text).strip()
