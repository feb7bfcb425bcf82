"""table.md, made of results.json alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.goals import goals, interval_text

__all__ = ["markdown_table", "render"]


def render(results: dict[str, Any]) -> str:
    """The whole Markdown page."""
    parts = [_head(results), _goals(results)]
    for name, section in (
        ("steps", _steps),
        ("noise", _noise),
        ("samplers", _samplers),
        ("cache", _cache),
        ("predictor", _predictor),
        ("field", _field),
        ("four-field", _four_field),
        ("attributes", _attributes),
        ("attention", _attention),
        ("combined", _combined),
        ("scaling", _scaling),
    ):
        if name in results:
            parts.append(section(results[name]))
    return "\n\n".join(parts) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines)


def _head(results: dict[str, Any]) -> str:
    about, size = results["about"], results["size"]
    lines = ["# Benchmark", ""]
    if size["name"] == "quick":
        lines += [
            "**A quick run: it shows that everything runs. Its figures mean nothing.**",
            "",
        ]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    judges = ", ".join(
        f"{results[name]['rows'][0]['prompts']} for {name}"
        for name in ("steps", "cache", "combined")
        if name in results
    )
    lines += [
        f"Made by `python -m benchmarks`, {about['date']}, on {about['machine']} "
        f"({about['cores']} cores usable, {about['threads']} threads, load {about['load']} at the "
        f"start), device {about['device']}; {versions}.",
        "",
        f"Bundled model {about['model'][:12]}, baseline {size['steps']} uniform steps, seed "
        f"{about['seed']}, coupled noise. Fresh prompts (set `evaluation`): {judges}; "
        f"{size['calibration']} prompts calibrate (`calibration`), others decide inside the "
        "searches (`verification`). PSNR is of raw frames against the baseline's. Brackets are "
        "95 % intervals over prompts; differences are paired; one run of every setting per prompt, "
        "in turns with the baseline; speed-ups are medians of denoising time over prompts.",
    ]
    return "\n".join(lines)


def _goals(results: dict[str, Any]) -> str:
    rows = [[goal.text, goal.measured or "-", goal.verdict] for goal in goals(results)]
    return "## Goals\n\n" + markdown_table(("goal", "measured", ""), rows)


def _percent(values: dict[str, Any]) -> str:
    return interval_text(values, ".1f", 100)


def _steps(section: dict[str, Any]) -> str:
    rows = []
    for row in sorted(section["rows"], key=lambda row: -row["steps"]):
        about = row["about"]
        origin = f" ({about['origin']})" if "origin" in about else ""
        rows.append(
            [
                f"{row['steps']}",
                row["method"] + origin,
                interval_text(row["psnr"]),
                f"{row['psnr_median']:.1f}",
                interval_text(row["gain"]),
                _percent(row["right"]),
                _percent(row["loss"]),
                interval_text(row["speedup"], ".2f"),
                f"{about.get('evaluations', 0)}",
            ]
        )
    head = (
        *("steps", "schedule", "PSNR, dB", "median", "gain over uniform, dB"),
        *("attributes right, %", "loss, %", "speed-up", "search cost, network evaluations"),
    )
    note = (
        f"Search cost comes on top of the {section['calibration_videos']} calibration videos. An "
        "evaluation of the reference's search is of the unconditional network alone, the others "
        "are guided pairs. `osp-opt search-steps` is what the tool writes: uniform where nothing "
        "was shown to be better on prompts of its own."
    )
    return f"## Steps\n\n![PSNR over steps](steps.png)\n\n{markdown_table(head, rows)}\n\n{note}"


def _noise(section: dict[str, Any]) -> str:
    kinds = list(dict.fromkeys(row["noise"] for row in section["rows"]))
    lengths = list(dict.fromkeys(row["steps"] for row in section["rows"]))
    psnr = {(row["noise"], row["steps"]): row["psnr"] for row in section["rows"]}
    rows = [
        [f"{length}", *(interval_text(psnr[kind, length]) for kind in kinds)] for length in lengths
    ]
    count = section["rows"][0]["psnr"]["count"]
    note = (
        f"PSNR in dB of uniform schedules to the full-length video of the same noise, {count} "
        "fresh prompts. Coupled noise is one Brownian path per prompt and seed, whatever the steps."
    )
    return f"## Noise\n\n{markdown_table(('steps', *kinds), rows)}\n\n{note}"


def _samplers(section: dict[str, Any]) -> str:
    rows = [
        [
            row["sampler"],
            f"{row['steps']}",
            row["schedule"],
            interval_text(row["psnr"]),
            "" if row["schedule"] == "uniform" else interval_text(row["gain"]),
        ]
        for row in section["rows"]
    ]
    head = ("sampler", "steps", "schedule", "PSNR, dB", "gain over uniform, dB")
    count = section["rows"][0]["psnr"]["count"]
    note = f"{count} fresh prompts, against the full length of the same sampler."
    return f"## Deterministic samplers\n\n{markdown_table(head, rows)}\n\n{note}"


def _measured(rows: Sequence[dict[str, Any]]) -> str:
    head = (
        *("method", "setting", "speed-up", "counted", "PSNR to full length, dB"),
        *("to converged, dB", "attributes right, %", "loss, %"),
    )
    lines = [
        [
            row["method"],
            row["setting"],
            interval_text(row["speedup"], ".2f"),
            f"{row['about']['counted']:.2f}" if "counted" in row["about"] else "",
            interval_text(row["psnr"]),
            interval_text(row["converged"]) if "converged" in row else "",
            _percent(row["right"]),
            _percent(row["loss"]),
        ]
        for row in rows
    ]
    return markdown_table(head, lines)


def _not_run(section: dict[str, Any]) -> str:
    rows = [[item["method"], item["setting"], item["reason"]] for item in section["not_run"]]
    return "\n\n" + markdown_table(("not run", "setting", "reason"), rows) if rows else ""


def _cache(section: dict[str, Any]) -> str:
    text = f"## Cache\n\n![PSNR over speed-up](cache.png)\n\n{_measured(section['rows'])}"
    text += _not_run(section)
    costs = [
        [
            row["method"],
            row["setting"],
            row["about"]["text"],
            f"{row['about']['generations']:.1f} x {row['about']['prompts']} prompts",
            f"{row['about']['evaluations']}",
            f"{row['about']['predicted_speedup']:.3f}",
        ]
        for row in section["rows"]
        if "generations" in row["about"]
    ]
    head = ("search", "", "policy", "generations", "network evaluations", "predicted speed-up")
    text += "\n\nSearch cost (generations in block work, per prompt that decides):\n\n"
    text += markdown_table(head, costs)
    lines = []
    for own in section["equal_speed"]:
        for method, found in own["against"].items():
            slow = f"reaches {found['fastest']:.2f}x only"
            gain = slow if found["gain"] is None else interval_text(found["gain"])
            lines.append([f"free {own['setting']}", f"{own['speedup']:.2f}", method, gain])
    text += "\n\nFree policies against the peers' curves at equal measured speed (PSNR gain, dB, "
    text += "paired; curves are read between settings, per prompt):\n\n"
    text += markdown_table(("ours", "speed-up", "against", "gain, dB"), lines)
    text += (
        "\n\nThe peers hook Python around every block; on a model this small that costs more of a "
        "step than on a large one. It is part of their measured time."
    )
    return text


def _predictor(section: dict[str, Any]) -> str:
    names = list(section["rows"][0]["correlations"])
    rows = []
    for row in section["rows"]:
        values = [row["correlations"][name] for name in names]
        texts = ["-" if value is None else f"{value:.2f}" for value in values]
        rows.append([row["group"], f"{row['policies']}", *texts])
    note = (
        "Spearman's rank correlation with the measured error of the latents (mean logarithm over "
        f"{section['prompts']} fresh prompts), of four-field policies drawn without regard to "
        "their score: of equal predicted speed-up, and of all."
    )
    return f"## Predictor\n\n{markdown_table(('cost', 'policies', *names), rows)}\n\n{note}"


def _field(section: dict[str, Any]) -> str:
    count = section["rows"][0]["prompts"]
    text = (
        "## Caches with other samplers and on searched steps\n\n![PSNR over counted work]"
        f"(field.png)\n\n{count} fresh prompts; PSNR to the plain video of the same sampler and "
        "steps. Work is counted in multiply-adds of the blocks' linear layers, nothing was timed."
    )
    for base in dict.fromkeys(row["base"] for row in section["rows"]):
        mine = [row for row in section["rows"] if row["base"] == base]
        lines = [
            [row["method"], row["setting"], f"{row['counted']:.2f}", interval_text(row["psnr"])]
            for row in mine
        ]
        text += f"\n\n### {base}\n\n"
        text += markdown_table(("method", "setting", "less work, x", "PSNR, dB"), lines)
        own = [one for one in section["equal_work"] if one["base"] == base]
        text += "\n\nAhead of others at the same work, dB (paired; curves read between settings):"
        text += "\n\n" + _ahead(own)
    return text + _not_run(section)


def _ahead(own: Sequence[dict[str, Any]]) -> str:
    """A column for each of ours, a line for each peer."""
    lines = []
    for peer in dict.fromkeys(name for one in own for name in one["against"]):
        cells = []
        for one in own:
            found = one["against"][peer]
            slow = f"stops at {found['fastest']:.2f}x"
            cells.append(slow if found["gain"] is None else interval_text(found["gain"]))
        lines.append([peer, *cells])
    head = [f"{one['method']} {one['setting']}, {one['counted']:.2f}x" for one in own]
    return markdown_table(("against", *head), lines)


def _four_field(section: dict[str, Any]) -> str:
    rows = [
        [
            told,
            section[name]["policy"],
            f"{section[name]['counted']:.2f}",
            f"{section[name]['deciding']:.2e}",
            f"{sum(section[name]['fresh']) / section['prompts']:.2e}",
        ]
        for told, name in (("reference tool's procedure", "reference"), ("best of all", "best"))
    ]
    head = (
        *("choice", "policy", "less work, x"),
        *(
            f"error, {section[n]} {t}"
            for n, t in (("deciding_prompts", "that chose"), ("prompts", "fresh"))
        ),
    )
    note = (
        f"{section['sampled']} policies of four numbers just save the work (the latest first step "
        "of every interval, number and first block); all were sampled on one prompt and the best "
        "on those that chose. Errors are mean squares of frames, geometric means over prompts that "
        f"chose, means over fresh ones. The best has {section['bound']:.2f} times the procedure's "
        f"error on the first, {interval_text(section['ratio'], '.2f')} on fresh ones (geometric)."
    )
    return f"## Four numbers at their best\n\n{markdown_table(head, rows)}\n\n{note}"


def _attributes(section: dict[str, Any]) -> str:
    names = list(section["rows"][0]["right"])
    rows = [
        [
            row["sampler"],
            f"{row['steps']}",
            *(interval_text(row["right"][name], ".0f", 100) for name in names),
            interval_text(row["moved"], ".2f"),
        ]
        for row in section["rows"]
    ]
    note = (
        f"Percent of {section['prompts']} fresh prompts, Wilson intervals; movement as a quotient "
        "to the first line, geometric over prompts. PSNR would not compare samplers: each makes "
        "its own video of a prompt."
    )
    head = ("sampler", "steps", *names, "movement")
    return f"## What samplers draw\n\n{markdown_table(head, rows)}\n\n{note}"


def _attention(section: dict[str, Any]) -> str:
    rows = [
        [
            row["sampler"],
            "forecast" if row["order"] else "reused",
            f"all blocks, {row['against']}",
            interval_text(row["ratio"], ".2f"),
        ]
        for row in section["rows"]
    ]
    note = (
        f"Squared error of the latents, geometric over {section['prompts']} fresh prompts, when "
        "self-attention alone is reused at every second of 50 steps, over that of whole blocks "
        "reused. The same work is meant at 93x720p, where self-attention is "
        f"{100 * section['share']:.0f} % of a block."
    )
    head = ("sampler", "order", "against", "error ratio")
    return f"## Attention alone\n\n{markdown_table(head, rows)}\n\n{note}"


def _combined(section: dict[str, Any]) -> str:
    rows = sorted(section["rows"], key=lambda row: row["speedup"]["estimate"])
    text = (
        f"## Steps and cache together\n\n![PSNR over speed-up](combined.png)\n\n{_measured(rows)}"
    )
    note = (
        f"Converged: {section['converged']} uniform steps of the same noise. Counted: evaluations "
        "of blocks by a branch, of the full length over these."
    )
    return f"{text}\n\n{note}{_not_run(section)}"


def _scaling(section: dict[str, Any]) -> str:
    rows = [
        [
            row["stage"],
            f"{row['processes']}",
            f"{row['threads']}",
            interval_text(row["seconds"], ".1f"),
            interval_text(row["speedup"], ".2f"),
        ]
        for row in section["rows"]
    ]
    head = ("verification of", "processes", "threads each", "seconds", "speed-up")
    first = section["rows"][0]
    note = (
        f"{first['videos']} videos per stage, {first['repeats']} repeats, "
        f"{section['cores']} cores; start-up and loading not counted."
    )
    return f"## Scaling\n\n{markdown_table(head, rows)}\n\n{note}"
