"""The figures that the documents show are those of the committed benchmark run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.summary import recipes, summary
from benchmarks.table import render

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def results() -> dict[str, object]:
    loaded: dict[str, object] = json.loads((RESULTS / "results.json").read_text())
    return loaded


def test_the_table_is_of_the_results() -> None:
    assert (RESULTS / "table.md").read_text() == render(results())


def test_the_short_tables_are_of_the_results() -> None:
    text = (ROOT / "docs" / "choosing.md").read_text()
    for table in summary(results()).strip().split("\n\n"):
        assert table in text, "docs/choosing.md: paste benchmarks/results/summary.md"


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "docs/choosing.md"])
def test_recipes_are_of_the_results(name: str) -> None:
    assert recipes(results()).strip() in (ROOT / name).read_text(encoding="utf-8")
