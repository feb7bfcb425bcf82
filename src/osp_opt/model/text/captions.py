"""Prompt templates and the caption cleaning that Open-Sora-Plan v1.2 was sampled with (no torch).

The checkpoints were trained on captions that went through the cleaning introduced with DeepFloyd
IF (lower case; no links, markup, file names, counters, shop phrases; one kind of dash and quote),
so a prompt has to take the same road to mean the same to the text encoder. What each rule removes
is fixed by that compatibility; `tests/golden/pipeline/text_preprocessing.json` holds it.
"""

from __future__ import annotations

import html
import re
from urllib.parse import unquote_plus

import ftfy

from .markup import visible_text

POSITIVE_TEMPLATE = """
    (masterpiece), (best quality), (ultra-detailed), (unwatermarked), 
    {}. 
    emotional, harmonious, vignette, 4k epic detailed, shot on kodak, 35mm photo, 
    sharp focus, high budget, cinemascope, moody, epic, gorgeous
    """  # noqa: W291 - the official template ends three lines with a space
NEGATIVE_PROMPT = """
    nsfw, lowres, bad anatomy, bad hands, text, error, missing fingers, extra digit, fewer digits, cropped, worst quality, 
    low quality, normal quality, jpeg artifacts, signature, watermark, username, blurry.
    """  # noqa: E501, W291 - official text, byte for byte
MAX_SEQUENCE_LENGTH = 512  # tokens; the length the official sampling scripts pad to
# Cleaning reads this many characters, some twenty for each token the encoder takes: its searches
# are quadratic in the worst case, and a hostile prompt of 100 kB would keep them busy for minutes.
MAX_CHARACTERS = 10_000

_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_TOP_DOMAINS = "com|co|ru|net|org|edu|gov|it"
_MAX_HOST = 1024  # characters; longer than any DNS name (253), and a bound on the search


def _link(scheme: str) -> re.Pattern[str]:
    """A link: `scheme:` with what starts it, or a host name with its path unless '@' follows."""
    return re.compile(
        rf"\b(?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])"
        rf"|[a-zA-Z0-9.-]{{1,{_MAX_HOST}}}[.](?:{_TOP_DOMAINS})[\w/-]*\b/?(?!@))"
    )


_Rules = list[tuple[re.Pattern[str], str]]


def _rules(*pairs: tuple[str, str]) -> _Rules:
    return [(re.compile(pattern), replacement) for pattern, replacement in pairs]


_LINKS: _Rules = [(_link("https?"), ""), (_link("www"), "")]

# (?<!\S) and (?<!\s) pin a search to the start of a run. They change no result, since the leftmost
# match starts there anyway, and spare a quadratic search on long runs.
_SYMBOLS = _rules(
    (r"@\w+", ""),  # nicknames
    ("[\u31c0-\u4dff]+", ""),  # strokes, enclosed and rare CJK, hexagrams; common Han stays
    (
        "[\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030"
        "\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d]+",
        "-",
    ),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    (r"&quot;?|&amp", ""),
    (r"\d{1,3}(?:\.\d{1,3}){3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # article numbers
    (r"\\n", " "),  # a line break spelled out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"(?<!\S)\S+\.(?:{_FILE_TYPES})", ""),  # file names
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    ("[][(){}|/*#&@~\\\\\u00ae\u2022\u00a9\u2122\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7]+", " "),
    (r"(?<!\s)\s+\.\s+", " "),
)

_WORDS = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # article codes: jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE_TYPES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    # Sizes, 1920x1080: a Latin x, a Cyrillic one or a multiplication sign.
    ("\\b\\d+(?:\\.\\d*)?[x\u0445\u00d7]\\d+(?:\\.\\d*)?\\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)

_ENDS = _rules(
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)

# unescape hands the digits to int(), which raises on thousands of them.
_HUGE_REFERENCE = re.compile(r"&#\d{100,};?")
_JOINERS = re.compile("[-_]")
_MAX_JOINERS = 3  # more than these and the text is taken for a-file-name-like-this


def clean_caption(text: str) -> str:
    """One pass of the official caption cleaning.

    Sampling applies it twice (`preprocess_prompt`), because one pass can uncover what the next
    removes. Any string is accepted; what follows the first `MAX_CHARACTERS` characters is dropped.
    """
    text = unquote_plus(text[:MAX_CHARACTERS]).strip().lower().replace("<person>", "person")
    text = _apply(_LINKS, text)
    text = visible_text(text)
    text = _apply(_SYMBOLS, text)
    if len(_JOINERS.findall(text)) > _MAX_JOINERS:
        text = _JOINERS.sub(" ", text)
    text = _HUGE_REFERENCE.sub("", ftfy.fix_text(text))
    text = html.unescape(html.unescape(text))
    text = _apply(_WORDS, text)
    return _apply(_ENDS, text).strip()


def preprocess_prompt(text: str, clean: bool = True) -> str:
    """What is tokenized for a prompt: cleaned twice, or only lower-cased and stripped."""
    if clean:
        return clean_caption(clean_caption(text))
    return text.lower().strip()


def _apply(rules: _Rules, text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
