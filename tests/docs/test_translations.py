"""A page in Chinese says the same as its English one: as far as a test can read both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ("README", "docs/migration")
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+(?:\.\d+)*", re.ASCII)


@pytest.fixture(params=PAGES)
def both(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The text of a page in English and in Chinese."""
    one, other = (ROOT / f"{request.param}{suffix}" for suffix in (".md", ".zh-CN.md"))
    return one.read_text(encoding="utf-8"), other.read_text(encoding="utf-8")


def prose(text: str) -> str:
    return FENCE.sub("", text)


def sections(text: str) -> list[str]:
    """The text between headings, code blocks left out."""
    return re.split(r"^#+ .*$", prose(text), flags=re.MULTILINE)


def _is_own(link: str) -> bool:
    """Whether a link goes to a page that there is in both languages."""
    return any(
        Path(link).name.removesuffix(".md").removesuffix(".zh-CN") == Path(page).name
        for page in PAGES
    )


def test_headings_have_the_same_levels(both: tuple[str, str]) -> None:
    levels = [re.findall(r"^(#+) ", prose(text), re.MULTILINE) for text in both]
    assert levels[0] == levels[1]
    assert len(levels[0]) >= 8


def test_code_blocks_are_identical(both: tuple[str, str]) -> None:
    blocks = [FENCE.findall(text) for text in both]
    assert blocks[0] == blocks[1]
    assert len(blocks[0]) >= 6


def test_links_go_to_the_same_places_in_the_same_sections(both: tuple[str, str]) -> None:
    for one, other in zip(*map(sections, both), strict=True):
        found = [re.findall(r"\]\(([^)]*)\)", text) for text in (one, other)]
        ours, theirs = (sorted(link for link in set(links) if not _is_own(link)) for links in found)
        assert ours == theirs


def test_names_in_code_style_are_the_same(both: tuple[str, str]) -> None:
    for one, other in zip(*map(sections, both), strict=True):
        ours, theirs = (
            sorted(" ".join(name.split()) for name in re.findall(r"`([^`]+)`", text))
            for text in (one, other)
        )
        assert ours == theirs


def test_numbers_are_the_same(both: tuple[str, str]) -> None:
    for one, other in zip(*map(sections, both), strict=True):
        ours, theirs = (
            sorted(NUMBER.findall(re.sub(r"`[^`]*`|\]\([^)]*\)", " ", text)))
            for text in (one, other)
        )
        assert ours == theirs


def test_tables_have_the_same_shape(both: tuple[str, str]) -> None:
    shapes = [
        [line.count("|") for line in text.splitlines() if line.startswith("|")] for text in both
    ]
    assert shapes[0] == shapes[1]


def test_it_is_chinese(both: tuple[str, str]) -> None:
    for part in sections(both[1])[1:-1]:
        assert not part.strip() or re.search(r"[\u4e00-\u9fff]", part)


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("suffix", [".md", ".zh-CN.md"])
def test_no_line_is_left_untranslated_by_accident(page: str, suffix: str) -> None:
    """No paragraph of one language stands in the other's file; names of languages may."""
    text = prose((ROOT / f"{page}{suffix}").read_text(encoding="utf-8"))
    foreign = re.compile(r"[\u4e00-\u9fff]" if suffix == ".md" else r"(?:\b[a-z]+ ){7}")
    lines = [re.sub(r"`[^`]*`|\[[^\]]*\]\([^)]*\)", "", line) for line in text.splitlines()]
    assert [line for line in lines if foreign.search(line)] == []
