"""README.zh-CN.md says the same as README.md: as far as a test can read both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text()
CHINESE = (ROOT / "README.zh-CN.md").read_text()
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)*", re.ASCII)
EACH_OTHER = {"README.md", "README.zh-CN.md"}


def prose(text: str) -> str:
    return FENCE.sub("", text)


def sections(text: str) -> list[str]:
    """The text between headings, code blocks left out."""
    return re.split(r"^#+ .*$", prose(text), flags=re.MULTILINE)


def test_headings_have_the_same_levels() -> None:
    levels = [re.findall(r"^(#+) ", prose(text), re.MULTILINE) for text in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]
    assert len(levels[0]) > 10


def test_code_blocks_are_identical() -> None:
    blocks = [FENCE.findall(text) for text in (ENGLISH, CHINESE)]
    assert blocks[0] == blocks[1]
    assert len(blocks[0]) >= 8


def test_links_go_to_the_same_places_in_the_same_sections() -> None:
    for one, other in zip(sections(ENGLISH), sections(CHINESE), strict=True):
        found = [re.findall(r"\]\(([^)]*)\)", text) for text in (one, other)]
        ours, theirs = (sorted(set(links) - EACH_OTHER) for links in found)
        assert ours == theirs


def test_names_in_code_style_are_the_same() -> None:
    for one, other in zip(sections(ENGLISH), sections(CHINESE), strict=True):
        ours, theirs = (
            sorted(" ".join(name.split()) for name in re.findall(r"`([^`]+)`", text))
            for text in (one, other)
        )
        assert ours == theirs


def test_numbers_are_the_same() -> None:
    for one, other in zip(sections(ENGLISH), sections(CHINESE), strict=True):
        ours, theirs = (
            sorted(NUMBER.findall(re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text)))
            for text in (one, other)
        )
        assert ours == theirs


def test_tables_have_the_same_shape() -> None:
    shapes = [
        [line.count("|") for line in text.splitlines() if line.startswith("|")]
        for text in (ENGLISH, CHINESE)
    ]
    assert shapes[0] == shapes[1]


def test_it_is_chinese() -> None:
    for part in sections(CHINESE)[1:-1]:
        assert not part.strip() or re.search(r"[\u4e00-\u9fff]", part)


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_no_line_is_left_untranslated_by_accident(name: str) -> None:
    """No paragraph of one language stands in the other's file."""
    text = prose((ROOT / name).read_text())
    foreign = (
        re.compile(r"[\u4e00-\u9fff]") if name == "README.md" else re.compile(r"(?:\b[a-z]+ ){7}")
    )
    lines = [re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)", "", line) for line in text.splitlines()]
    assert [line for line in lines if foreign.search(line)] == []
