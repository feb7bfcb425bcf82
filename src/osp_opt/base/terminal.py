"""What reaches the terminal: text of files and flags is shown, never obeyed. No torch."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["make_console", "note", "report_error", "visible"]

_LONGEST = 2000  # characters; a file may have put anything into the line
_KEPT = "\n\u200c\u200d"  # line ends, and the joiners inside words and emoji


def visible(text: str) -> str:
    r"""The text with everything escaped that a terminal would obey or not show, as in \x1b."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in _KEPT else char.encode("unicode_escape").decode()
        for char in text
    )


def report_error(text: str) -> None:
    """The one line that a user sees when something went wrong."""
    line = " ".join(text.split())
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
    print(f"osp-opt: error: {visible(line)}", file=sys.stderr)


def note(text: str) -> None:
    """A line beside the results."""
    print(visible(f"note: {' '.join(text.split())}"), file=sys.stderr)


def make_console(stream: TextIO | None = None) -> Console:
    """A console, by default on stdout, whose tables and lines show all texts as `visible` does."""
    from rich.console import Console
    from rich.segment import Segment

    class VisibleConsole(Console):
        def render(self, renderable: Any, options: Any = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control else Segment(visible(text), style)

    return VisibleConsole(file=stream)
