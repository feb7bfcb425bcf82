"""The reference pages say what options and docstrings say."""

from __future__ import annotations

from tools.reference import pages


def test_pages_are_what_python_m_tools_reference_writes() -> None:
    for path, text in pages().items():
        assert path.read_text(encoding="utf-8") == text, "run python -m tools.reference"
