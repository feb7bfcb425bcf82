"""The visible text of a caption that may contain HTML, as the official caption cleaning sees it.

Upstream asks Beautiful Soup (over Python's html.parser) for the document's text. Only that text is
needed here, so this module keeps the few of its habits that reach it: comments, declarations and
the contents of script, style, template, rt and rp are dropped, a piece of text that is nothing but
blanks becomes one blank, entities are resolved.
"""

from __future__ import annotations

import html
import re
from html.entities import html5
from html.parser import HTMLParser

_HIDDEN = frozenset({"script", "style", "template", "rt", "rp"})
_PREFORMATTED = frozenset({"pre", "textarea"})
_VOID = re.compile(
    "area|base|basefont|bgsound|br|col|command|embed|frame|hr|image|img|input|isindex|keygen|link"
    "|menuitem|meta|nextid|param|source|spacer|track|wbr"
)
_BLANKS = "\n\t\f\r "
_MAX_DIGITS = 8  # no code point needs more; int() itself refuses thousands of digits


def visible_text(text: str) -> str:
    """The text without markup; text that html.parser rejects comes back as it is."""
    reader = _TextReader()
    try:
        reader.feed(text)
        reader.close()
    except AssertionError:  # html.parser's way to refuse a malformed declaration, e.g. "<![x"
        return text
    return reader.text()


class _TextReader(HTMLParser):
    """Collects text between tags, with just enough of a tag stack to know what is hidden."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self._open: list[str] = []
        self._pending: list[str] = []
        self._pieces: list[str] = []

    def text(self) -> str:
        self._end_piece()
        return "".join(self._pieces)

    def _end_piece(self, hidden: bool | None = None) -> None:
        """Keep what was read since the last tag, unless it is inside a hidden element."""
        if hidden is None:
            hidden = not _HIDDEN.isdisjoint(self._open)
        if self._pending and not hidden:
            piece = "".join(self._pending)
            if not piece.strip(_BLANKS) and _PREFORMATTED.isdisjoint(self._open):
                piece = "\n" if "\n" in piece else " "
            self._pieces.append(piece)
        self._pending = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_piece()
        if not _VOID.fullmatch(tag):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self._end_piece()
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self._pending.append(data)

    def handle_entityref(self, name: str) -> None:
        self._pending.append(html5.get(f"{name};", f"&{name}"))

    def handle_charref(self, name: str) -> None:
        digits, base = (name[1:], 16) if name[0] in "xX" else (name, 10)
        digits = digits.lstrip("0")[: _MAX_DIGITS + 1] or "0"
        code = int(digits, base)
        # unescape knows the HTML rules for the C1 range, but empties the other control characters.
        self._pending.append(html.unescape(f"&#{code};") or chr(code))

    def handle_comment(self, data: str) -> None:
        self._end_piece()

    def handle_decl(self, decl: str) -> None:
        self._end_piece()

    def handle_pi(self, data: str) -> None:
        self._end_piece()

    def unknown_decl(self, data: str) -> None:
        """A CDATA section is text, even in a hidden element; any other marked section is not."""
        self._end_piece()
        if data.upper().startswith("CDATA["):
            self._pending.append(data[len("CDATA[") :])
            self._end_piece(hidden=False)
