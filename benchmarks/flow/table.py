"""flow.md, made of flow.json alone."""

from __future__ import annotations

from typing import Any

from benchmarks.goals import interval_text
from benchmarks.table import markdown_table

__all__ = ["render"]

_TOLD = {
    "adherence": "## Does it do what is asked?\n\nPercent of {prompts} held-out prompts, read by "
    "the checker, with 95 % Wilson intervals.",
    "steps": "## Fewer steps\n\nPSNR to the 300-step video of the same noise, {prompts} prompts; "
    "the gain is against the shift that is best of 1, 2, 3, 5, 8 on these very prompts (a = 0). "
    "a = 1: corrected steps. p: divisor power of the cost.",
    "guidance": "## The negative branch now and then\n\n{prompts} prompts. Work is counted in "
    "multiply-adds of the blocks.",
    "cache": "## Caches\n\n{prompts} prompts, 50 steps. Work is counted in multiply-adds of the "
    "blocks; ours are planned, nothing was sampled to choose them.",
    "recipe": "## Four times less work\n\n{prompts} prompts. Work is counted.",
}


def render(results: dict[str, Any]) -> str:
    """The whole Markdown page."""
    about = results["about"]
    parts = [
        "# The second model\n\nMade by `python -m benchmarks.flow`; model "
        f"{about['model'][:12]}, seed {about['seed']}. Brackets are 95 % intervals."
    ]
    for name, told in _TOLD.items():
        if name in results:
            section = results[name]
            parts += [told.format(prompts=section["prompts"]), _TABLES[name](section)]
    return "\n\n".join(parts) + "\n"


def _adherence(section: dict[str, Any]) -> str:
    names = list(section["rows"][0]["right"])
    rows = []
    for row in section["rows"]:
        cells = [interval_text(row["right"][name], ".0f", 100.0) for name in names]
        rows.append([str(row["steps"]), *cells])
    return markdown_table(["steps", *names], rows)


def _steps(section: dict[str, Any]) -> str:
    rows = [
        [
            str(row["steps"]),
            row["kind"],
            interval_text(row["psnr"]),
            interval_text(row["gain"]),
            f"{100 * row['all_right']:.0f}",
        ]
        for row in section["rows"]
    ]
    head = ["steps", "schedule", "PSNR, dB", "gain, dB", "all right, %"]
    return markdown_table(head, rows)


def _reuse(section: dict[str, Any]) -> str:
    rows = [
        [
            row["name"],
            f"{row['speedup']['estimate']:.2f}",
            interval_text(row["to_plain"]),
            interval_text(row["to_converged"]),
            f"{100 * row['all_right']:.0f}",
        ]
        for row in section["rows"]
    ]
    head = ["what", "less work, x", "PSNR to plain 50, dB", "to 300 steps, dB", "all right, %"]
    table = markdown_table(head, rows)
    missing = [f"{one['name']}: not run ({one['reason']})" for one in section.get("not_run", [])]
    return "\n".join([table, *(f"\n{line}" for line in missing)])


_TABLES = {
    "adherence": _adherence,
    "steps": _steps,
    "guidance": _reuse,
    "cache": _reuse,
    "recipe": _reuse,
}
