"""``python -m benchmarks.flow [SECTION ...] [--prompts N]``: the second model's tables.

Without section names all run. Everything measured is kept in the work folder at once: a run that
was stopped goes on. `flow.json` and `flow.md` are written after every section.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from benchmarks.flow import adherence, reuse, steps
from benchmarks.flow.bench import MODEL, Bench
from benchmarks.flow.table import render
from osp_opt.base.artifacts import atomic_write_text, read_json, write_json
from osp_opt.tiny.prompts import load_prompts

HERE = Path(__file__).parent


class Section(str, Enum):
    """What can be run alone."""

    adherence = "adherence"
    steps = "steps"
    guidance = "guidance"
    cache = "cache"
    recipe = "recipe"


RUNS = {
    Section.adherence: adherence.run,
    Section.steps: steps.run,
    Section.guidance: reuse.run_guidance,
    Section.cache: reuse.run_cache,
    Section.recipe: reuse.run_recipe,
}


def main(
    sections: Annotated[
        list[Section] | None, typer.Argument(help="Sections to run; default: all.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts that judge.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every video.")] = 42,
    model: Annotated[Path, typer.Option(help="Folder of the pipeline.")] = MODEL,
    out: Annotated[Path, typer.Option(help="Folder for results.")] = HERE.parent / "results",
    work: Annotated[Path, typer.Option(help="Folder for what was measured.")] = HERE.parent
    / "work",
) -> None:
    """Measure, and write flow.json and flow.md."""
    bench = Bench(work, seed, model)
    judging = list(load_prompts("evaluation")[:prompts])
    for section in sections or list(Section):
        print(f"{section.value}:", flush=True)
        _write(out, bench, {section.value: RUNS[section](bench, judging)})


def _write(folder: Path, bench: Bench, found: dict[str, Any]) -> None:
    """Join with what other sections left, of the same model and seed."""
    path = folder / "flow.json"
    about = {"model": bench.fingerprint, "seed": bench.seed}
    results: dict[str, Any] = {"about": about}
    if path.is_file():
        held = read_json(path, "benchmark results", max_bytes=1 << 26)
        results = held if held.get("about") == about else results
    write_json(path, {**results, **found})
    atomic_write_text(folder / "flow.md", render(read_json(path, "results", max_bytes=1 << 26)))


if __name__ == "__main__":
    typer.run(main)
