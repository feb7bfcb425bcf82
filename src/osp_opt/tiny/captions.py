"""Reading the captions of the bundled model. No torch here. (`tools/train_tiny` writes them.)"""

from __future__ import annotations

import re

from osp_opt.tiny.specs import BACKGROUNDS, COLORS, MOTIONS, SHAPES, ClipSpec

__all__ = ["parse"]

_SPELLINGS = {"grey": "gray"}


def parse(text: str) -> ClipSpec | None:
    """Read a caption of any phrasing: exactly one word of each attribute, else None."""
    words = [_SPELLINGS.get(word, word) for word in re.findall(r"[a-z]+", text.lower())]
    found: list[str] = []
    for known in (SHAPES, COLORS, BACKGROUNDS, MOTIONS):
        values = {word for word in words if word in known}
        if len(values) != 1:
            return None
        found.append(values.pop())
    return ClipSpec(*found)
