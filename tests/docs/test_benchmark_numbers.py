"""The figures that the READMEs show are those of the committed benchmark run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.summary import summary
from benchmarks.table import render

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def results() -> dict[str, object]:
    loaded: dict[str, object] = json.loads((RESULTS / "results.json").read_text())
    return loaded


def test_the_table_is_of_the_results() -> None:
    assert (RESULTS / "table.md").read_text() == render(results())


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md"])
def test_a_readme_shows_the_short_table(name: str) -> None:
    text = (ROOT / name).read_text()
    for table in summary(results()).strip().split("\n\n"):
        assert table in text, f"{name}: paste benchmarks/results/summary.md"
