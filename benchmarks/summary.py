"""The short table of the README, made of results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.cache import FOUR_FIELD, FREE, REFERENCE
from benchmarks.goals import interval_text
from benchmarks.steps import AYS, TOOL, UNIFORM
from benchmarks.steps import REFERENCE as REFERENCE_STEPS
from benchmarks.table import markdown_table

__all__ = ["recipes", "summary"]

RECIPES = (2, 4, 8)  # times faster
NEARLY = 0.92  # of that

STEP_METHODS = (UNIFORM, TOOL, AYS, REFERENCE_STEPS)
CACHE_METHODS = (FOUR_FIELD, FREE, REFERENCE)


def summary(results: dict[str, Any]) -> str:
    """Steps, caches and peers as one Markdown table each, without headings."""
    parts = [_steps(results["steps"]["rows"]), _cache(results["cache"])]
    return "\n\n".join(parts) + "\n"


def recipes(results: dict[str, Any]) -> str:
    """For each speed that people ask for, the command that came nearest to the converged video."""
    rows = [row for row in results["combined"]["rows"] if _commands(row) is not None]
    shown = []
    for wanted in RECIPES:
        fast = [row for row in rows if row["speedup"]["estimate"] >= NEARLY * wanted]
        best = max(fast, key=lambda row: row["converged"]["estimate"])
        shown.append(
            [
                f"{wanted}x",
                str(_commands(best)),
                interval_text(best["speedup"], ".2f"),
                interval_text(best["converged"]),
            ]
        )
    return markdown_table(
        ("wanted", "commands", "speed-up", "PSNR to the converged video, dB"), shown
    )


def _commands(row: dict[str, Any]) -> str | None:
    """The command lines that make an entrant; None where there is no command for it."""
    steps = f"`search-steps --steps {row['steps']}`"
    _, _, ratio = row["setting"].rpartition("--ratio ")
    cache = f"`search-cache --ratio {ratio}`"
    told = {
        "uniform": f"`sample --plain --steps {row['steps']}`",
        "search-steps": steps,
        "search-cache free": cache,
        "search-steps, search-cache free": f"{steps}, {cache}",
        "optimize": f"`optimize {row['setting'].partition(':')[0]}`",
    }
    return told.get(row["method"])


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
