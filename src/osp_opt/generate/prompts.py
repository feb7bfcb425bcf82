"""The prompts of a job: from the command line, from a file, or from the package (no torch)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from osp_opt.base.artifacts import parse_json, read_bytes
from osp_opt.base.errors import FileError
from osp_opt.options import ModelOptions, SamplingOptions
from osp_opt.options.groups import PROMPT_FILE_KINDS
from osp_opt.tiny.prompts import load_prompts

__all__ = ["default_prompts", "given_prompts", "listed_prompts", "read_prompt_file"]

PROMPT_FILE_MAX_BYTES = 8 * 2**20
COLUMN = "prompt"
OTHER_COLUMNS = ("text_prompt", "prompt_en", "text", "caption", "cap")
"""What other lists call it; "cap" is Open-Sora-Plan's, which holds a list of captions."""

_BUNDLED = Path(__file__).parents[1] / "assets" / "prompts"
_JSON_DEPTH = 8
_SHOWN = 40  # characters of a value in an error text


def given_prompts(options: SamplingOptions) -> list[str] | None:
    """The prompts that the user gave, in order, each once; None when there are none (use the
    bundled ones).

    Raises FileError for a prompt file that cannot be read, is ambiguous or holds no prompt.
    """
    listed = listed_prompts(options)
    return None if listed is None else list(dict.fromkeys(listed))


def listed_prompts(options: SamplingOptions) -> list[str] | None:
    """As `given_prompts`, with those that were given twice."""
    if options.prompt_file is not None:
        return read_prompt_file(options.prompt_file)
    return [_one_line(text) for text in options.text_prompt] or None


def default_prompts(options: ModelOptions, name: str) -> list[str]:
    """The bundled prompts of set `name`: "calibration" or "verification".

    Without a model path they are in the bundled model's own small language, which its checker
    can read; for other models they describe everyday scenes. The two sets share no prompt, so that
    what was calibrated on is never what decides.
    """
    if options.is_bundled:
        return list(load_prompts(name))
    return read_prompt_file(_BUNDLED / f"{name}.txt")


def read_prompt_file(path: str | Path) -> list[str]:
    """The prompts of a file, in order.

    Text: one a line, lines that begin with # are comments. JSON, JSON lines: texts, or objects
    that have a prompt. Tables (.csv, .tsv): a header, of which one column is the prompt. Raises
    FileError where it is not certain what the prompts are, or none is left.
    """
    data = read_bytes(path, "prompt file", PROMPT_FILE_MAX_BYTES)
    kind = Path(path).suffix.lower()
    try:
        text = data.decode("utf-8-sig")
        if kind in (".csv", ".tsv"):
            found = _of_table(text, "\t" if kind == ".tsv" else ",")
        elif kind == ".json":
            found = _of_json(parse_json(text, _JSON_DEPTH))
        elif kind in (".jsonl", ".ndjson"):
            found = _of_json_lines(text)
        elif kind in ("", *PROMPT_FILE_KINDS):
            found = _of_text(text)
        else:
            raise ValueError(f"of an unknown kind; call it {', '.join(PROMPT_FILE_KINDS)}")
    except UnicodeDecodeError as error:
        raise FileError(f"prompt file {path}: not UTF-8 text ({error.reason})") from error
    except (ValueError, csv.Error) as error:
        raise FileError(f"prompt file {path}: {error}") from error
    prompts = [_one_line(prompt) for prompt in found]
    if not any(prompts):
        raise FileError(f"prompt file {path}: holds no prompt; write one prompt per line")
    if not all(prompts):
        number = prompts.index("") + 1
        raise FileError(f"prompt file {path}: prompt {number} is empty; write it or remove it")
    return prompts


def _of_text(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if lines and lines[0][0] in "[{" and lines[-1][-1] in "]}":
        raise ValueError(
            "is it JSON? then call it .json (or .jsonl for a value a line); as text, its first "
            "prompt begins with a bracket"
        )
    if lines and all(line.lower().endswith(".json") for line in lines):
        raise ValueError("lists JSON files; give one of them, or write prompts")
    return lines


def _of_json(value: Any) -> list[str]:
    """A list of entries, also as the "prompts" of an object; or one entry."""
    if isinstance(value, dict):
        value = [value] if _columns(value) else value.get(f"{COLUMN}s")
    if not isinstance(value, list):
        raise ValueError("neither a list nor an object with one; write a list of texts")
    return [_of_entry(entry, f"entry {number}") for number, entry in enumerate(value)]


def _of_json_lines(text: str) -> list[str]:
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = parse_json(line, _JSON_DEPTH)
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON ({error})") from error
        found.append(_of_entry(value, f"line {number}"))
    return found


def _of_entry(entry: Any, where: str) -> str:
    """The prompt of a text or an object."""
    if isinstance(entry, str):
        return entry
    if not isinstance(entry, dict):
        raise ValueError(
            f"{where} is {entry!r:.{_SHOWN}}; write a text, or an object with a prompt"
        )
    value = entry[_column(list(entry), where)]
    if isinstance(value, list) and value:
        value = value[0]  # several captions of one video
    if not isinstance(value, str):
        raise ValueError(f"{where}: its prompt is {value!r:.{_SHOWN}}; write a text")
    return value


def _of_table(text: str, delimiter: str) -> list[str]:
    """The prompt column of a table with a header."""
    rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    filled = [(number, row) for number, row in enumerate(rows, start=1) if any(row)]
    if not filled:
        return []
    header = [name.strip() for name in filled[0][1]]
    place = header.index(_column(header, "its first line"))
    for number, row in filled:
        if len(row) != len(header):
            raise ValueError(
                f"row {number} has {len(row)} columns where the header has {len(header)}; put "
                'texts with separators into "quotes"'
            )
    return [row[place] for _, row in filled[1:]]


def _columns(names: Sequence[str] | dict[str, Any]) -> list[str]:
    """Those that may hold the prompt: the one of that name, else what other lists call it."""
    exact = [name for name in names if name.strip().lower() == COLUMN]
    return exact or [name for name in names if name.strip().lower() in OTHER_COLUMNS]


def _column(names: Sequence[str], where: str) -> str:
    """The one that holds the prompt. Raises ValueError when none does, or several may."""
    found = _columns(names)
    shown = ", ".join(map(repr, names[:8]))[:120]
    if not found:
        raise ValueError(f"{where} names no {COLUMN!r} (it has {shown or 'nothing'}); name one so")
    if len(found) > 1:
        raise ValueError(f"{where}: {' and '.join(found)} may be the prompt; call one {COLUMN!r}")
    return found[0]


def _one_line(text: str) -> str:
    """Control characters, which no tokenizer was trained on, become spaces."""
    return "".join(char if char.isprintable() else " " for char in text).strip()
