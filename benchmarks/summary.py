"""The short table of the README, made of results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.cache import FOUR_FIELD, FREE, REFERENCE
from benchmarks.goals import interval_text
from benchmarks.steps import AYS, TOOL, UNIFORM
from benchmarks.steps import REFERENCE as REFERENCE_STEPS
from benchmarks.table import markdown_table

__all__ = ["summary"]

STEP_METHODS = (UNIFORM, TOOL, AYS, REFERENCE_STEPS)
CACHE_METHODS = (FOUR_FIELD, FREE, REFERENCE)


def summary(results: dict[str, Any]) -> str:
    """Steps, caches and peers as one Markdown table each, without headings."""
    parts = [_steps(results["steps"]["rows"]), _cache(results["cache"])]
    return "\n\n".join(parts) + "\n"


def _steps(rows: Sequence[dict[str, Any]]) -> str:
    shown = [
        [
            f"{row['steps']}",
            row["method"] + (" (uniform)" if row["about"].get("origin") == UNIFORM else ""),
            interval_text(row["psnr"]),
            "" if row["method"] == UNIFORM else interval_text(row["gain"]),
            interval_text(row["speedup"], ".2f"),
        ]
        for row in sorted(rows, key=lambda row: -row["steps"])
        if row["method"] in STEP_METHODS
    ]
    head = ("steps", "schedule", "PSNR, dB", "gain over uniform, dB", "speed-up")
    return markdown_table(head, shown)


def _cache(section: dict[str, Any]) -> str:
    """Own policies, and for each peer how far the nearest free policy is ahead at its speed."""
    shown = [
        [
            f"{row['method']} {row['setting']}",
            interval_text(row["speedup"], ".2f"),
            interval_text(row["psnr"]),
        ]
        for row in section["rows"]
        if row["method"] in CACHE_METHODS
    ]
    text = markdown_table(("cache, 100 steps", "speed-up", "PSNR, dB"), shown)
    settings = [own["setting"] for own in section["equal_speed"]]
    peers = dict.fromkeys(name for own in section["equal_speed"] for name in own["against"])
    rows = []
    for peer in peers:
        cells = []
        for own in section["equal_speed"]:
            found = own["against"].get(peer)
            if found is None:
                cells.append("")
            elif found["gain"] is None:
                cells.append(f"stops at {found['fastest']:.2f}x")
            else:
                cells.append(interval_text(found["gain"]))
        rows.append([peer, *cells])
    return text + "\n\n" + markdown_table(("free ahead of, dB", *settings), rows)
