"""Prompt files of every usual kind; what is not certain is refused with what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from osp_opt.base.errors import FileError, OptionError
from osp_opt.cli.app import main
from osp_opt.cli.flags import resolve
from osp_opt.generate.prompts import given_prompts, read_prompt_file
from osp_opt.options import SampleOptions

WANTED = ["a red ball", 'two "blue", fast cats']
ANNOTATION = {"path": "a/b.mp4", "resolution": {"height": 720, "width": 1280}, "fps": 24}
"""An entry of Open-Sora-Plan's lists, without its caption."""

FILES = {
    "plain.txt": "a red ball\n" + WANTED[1] + "\n",
    "comments.txt": f"# the first\n a red ball \r\n\n  # the other\n{WANTED[1]}",
    "marked.txt": "\ufeffa red ball\n" + WANTED[1],
    "bare": "\n".join(WANTED),
    "texts.json": json.dumps(WANTED),
    "objects.json": json.dumps([{"id": n, "prompt": p} for n, p in enumerate(WANTED)]),
    "vbench.json": json.dumps([{"prompt_en": p, "dimension": ["color"]} for p in WANTED]),
    "plan.json": json.dumps([{**ANNOTATION, "cap": [p, "other words"]} for p in WANTED]),
    "cap.json": json.dumps([{**ANNOTATION, "cap": p} for p in WANTED]),
    "both.json": json.dumps([{"prompt": p, "caption": "x"} for p in WANTED]),
    "wrapped.json": json.dumps({"seed": 1, "prompts": WANTED}),
    "lines.jsonl": "\n".join(json.dumps({"text": p}) for p in WANTED) + "\n\n",
    "texts.jsonl": "\n".join(map(json.dumps, WANTED)),
    "one.csv": 'prompt\na red ball\n"two ""blue"", fast cats"\n',
    "more.csv": 'id,Prompt,seed\n1,a red ball,4\n\n2,"two ""blue"", fast cats",5\n',
    "excel.csv": '\ufeffcaption,n\r\na red ball,1\r\n"two ""blue"", fast cats",2\r\n',
    "table.tsv": 'n\tprompt\n1\ta red ball\n2\t"two ""blue"", fast cats"\n',
    "lines.CSV": 'prompt\na red ball\n"two ""blue"",\nfast cats"\n',
}
REFUSED = {
    "json.txt": (json.dumps(WANTED, indent=1), "call it .json"),
    "lines.txt": ('{"prompt": "a"}\n{"prompt": "b"}\n', "call it .json"),
    "data.txt": ("/data/a,/data/a.json\n/data/b,/data/b.json\n", "lists JSON files"),
    "none.txt": ("# nothing\n\n", "holds no prompt"),
    "other.yaml": ("- a\n", "unknown kind"),
    "number.json": ("3", "write a list"),
    "mapping.json": ('{"001": "a ball"}', "write a list"),
    "numbers.json": ("[1, 2]", "entry 0 is 1"),
    "nameless.json": ('[{"title": "a"}]', "entry 0 names no 'prompt'"),
    "double.json": ('[{"text": "a", "caption": "b"}]', "text and caption may be the prompt"),
    "empty.json": ('["a", ""]', "prompt 2 is empty"),
    "null.json": ('[{"prompt": null}]', "its prompt is None"),
    "deep.json": ("[" * 50 + "]" * 50, "nested too deeply"),
    "half.json": ('["\\ud83d"]', "surrogates"),
    "broken.json": ("[", "Expecting"),
    "broken.jsonl": ('"a"\n{\n', "line 2 is not JSON"),
    "headless.csv": ("a red ball\ntwo cats\n", "its first line names no 'prompt'"),
    "semicolons.csv": ("id;prompt\n1;a\n", "its first line names no 'prompt'"),
    "unquoted.csv": ("prompt\na red ball, bouncing\n", "row 2 has 2 columns"),
    "double.csv": ("prompt,Prompt\na,b\n", "may be the prompt"),
    "empty.csv": ("id,prompt\n1,a\n2,\n", "prompt 2 is empty"),
    "header.csv": ("prompt\n", "holds no prompt"),
    "quote.csv": ('prompt\n"a\n', "unexpected end"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_list(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FILES[name], newline="")
    assert read_prompt_file(tmp_path / name) == WANTED
    options = resolve(SampleOptions, {"text_prompt": [str(tmp_path / name)]}, None)
    assert options.prompt_file == tmp_path / name
    assert given_prompts(options) == WANTED


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_certain_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, reason = REFUSED[name]
    (tmp_path / name).write_text(text)
    argv = ["sample", "--workdir", str(tmp_path / "w"), "--prompt-file", str(tmp_path / name)]
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"prompt file {tmp_path / name}: " in line
    assert reason in line
    assert not (tmp_path / "w").exists()


def test_a_text_that_is_no_file_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("a red ball", "a. b", "x" * 5000, "https://a.b/c d", "a\nb.txt"):
        assert resolve(SampleOptions, {"text_prompt": [text]}, None).prompt_file is None
    (tmp_path / "list").write_text("a red ball")
    assert resolve(SampleOptions, {"text_prompt": ["list"]}, None).prompt_file == Path("list")
    with pytest.raises(OptionError, match="is a file; give it alone"):
        resolve(SampleOptions, {"text_prompt": ["a red ball", "list"]}, None)


def test_duplicates_are_made_once() -> None:
    options = SampleOptions(text_prompt=("a", "b ", "a", "b"))
    assert given_prompts(options) == ["a", "b"]


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"\xff\xfea\0")
    with pytest.raises(FileError, match="not UTF-8 text"):
        read_prompt_file(tmp_path / "p.txt")
