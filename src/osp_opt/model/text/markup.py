"""The visible text of a caption that may contain HTML, as the official caption cleaning sees it."""

from __future__ import annotations

import warnings

from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
from bs4.exceptions import ParserRejectedMarkup


def visible_text(text: str) -> str:
    """The text without markup; text that html.parser rejects comes back as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)  # a prompt is no file name
        try:
            return BeautifulSoup(text, features="html.parser").text
        except (ParserRejectedMarkup, ValueError):  # "<![x"; half a character; a number too long
            return text
