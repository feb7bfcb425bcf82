"""Prompts and places that nobody would choose in good faith."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from osp_opt.base.artifacts import file_inside
from osp_opt.base.errors import FileError, OptionError
from osp_opt.base.ledger import TrialLedger
from osp_opt.cli.flags import resolve
from osp_opt.generate.manifest import read_takes
from osp_opt.generate.prompts import given_prompts
from osp_opt.model.text.encoder import load_tokenizer, preprocess_prompt, tokenize
from osp_opt.options import SampleOptions

SIZE = 100_000  # characters
LONG = {
    "words": "a red ball " * (SIZE // 11),
    "one word": "a" * SIZE,
    "brackets": "<" * SIZE,
    "pairs": "<>" * (SIZE // 2),
    "braces": "{}" * (SIZE // 2),
    "slashes": "http://" * (SIZE // 7),
    "dots": "." * SIZE,
    "dashes": "-" * SIZE,
    "digits": "1" * SIZE,
    "spaces": "a" + " " * SIZE + "b",
    "entities": "&amp;" * (SIZE // 5),
    "quotes": '"' * SIZE,
    "chinese": "\u7403" * SIZE,
}


@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_a_prompt_of_100_kb_is_cleaned_and_cut(text: str, golden: Path) -> None:
    tokenizer = load_tokenizer(str(golden / "pipeline" / "text_encoder"))
    ids, mask = tokenize(tokenizer, [preprocess_prompt(text, True)], 16)
    assert ids.shape == mask.shape == (1, 16)


def test_control_characters_become_spaces() -> None:
    text = "a\x00red\x1b[31m\nball\u2028\u202e\x7f"
    (prompt,) = given_prompts(SampleOptions(text_prompt=(text,))) or []
    assert prompt == "a red [31m ball"


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "y/" + "x" * 300])
def test_a_path_that_no_file_can_have_is_refused(path: str) -> None:
    with pytest.raises(OptionError, match=r"--out .*check the path"):
        resolve(SampleOptions, {"out": path}, None)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "link", "deep/../../secret", "", ".", "a\0b", "x" * 300, 5]
)
def test_a_list_of_files_cannot_lead_out_of_its_folder(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("s")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "own.mp4").write_text("v")
    assert file_inside(folder, name) is None
    assert file_inside(folder, "own.mp4") == folder / "own.mp4"
    entry = {"file": name, "prompt": "a ball", "seed": 1}
    (folder / "manifest.json").write_text(json.dumps({"videos": [entry]}))
    with pytest.raises(FileError, match="entry 0"):
        read_takes(folder)


def test_a_ledger_does_not_write_through_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("")
    (tmp_path / "trials.jsonl").symlink_to(victim)
    with pytest.raises(FileError, match="cannot be written"):
        TrialLedger(tmp_path / "trials.jsonl").add("a", {"mse": 1.0})
    assert victim.read_text() == ""
