"""``python -m benchmarks [SECTION ...] [--quick] [--budget MINUTES]``.

Without section names all run but `field`, `four-field`, `attributes` and `attention`, which do not
time anything. Everything measured is kept in the work folder at once: a run that was stopped goes
on, and a section can be run alone. results.json, table.md and the figures are written after every
section.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from dataclasses import asdict, replace
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks import (
    attention,
    attributes,
    cache,
    combined,
    coupling,
    field,
    four_field,
    plots,
    predictor,
    samplers,
    scaling,
    steps,
    table,
)
from benchmarks.lab import Lab
from benchmarks.size import full_size, quick_size
from benchmarks.summary import summary
from osp_opt import __version__
from osp_opt.base.artifacts import atomic_write_text, read_json, write_json
from osp_opt.pipelines.maker import Request
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.tiny.prompts import load_prompts

HERE = Path(__file__).parent
PACKAGES = ("torch", "diffusers", "cache-dit", "transformers", "numpy")
RESULTS_FILE = "results.json"


class Section(str, Enum):
    """What can be run alone."""

    steps = "steps"
    noise = "noise"
    samplers = "samplers"
    cache = "cache"
    predictor = "predictor"
    field = "field"
    four_field = "four-field"
    attributes = "attributes"
    attention = "attention"
    combined = "combined"
    scaling = "scaling"


RUNS = {
    Section.steps: steps.run,
    Section.noise: coupling.run,
    Section.samplers: samplers.run,
    Section.cache: cache.run,
    Section.predictor: predictor.run,
    Section.field: field.run,
    Section.four_field: four_field.run,
    Section.attributes: attributes.run,
    Section.attention: attention.run,
    Section.combined: combined.run,
    Section.scaling: scaling.run,
}
# Counted in place of timed, hence outside the budget.
BY_NAME = (Section.field, Section.four_field, Section.attributes, Section.attention)


def main(
    sections: Annotated[
        list[Section] | None, typer.Argument(help="Sections to run; default: all that are timed.")
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Check that everything runs; about 3 minutes.")
    ] = False,
    budget: Annotated[
        float, typer.Option(min=1, help="Minutes that all sections may take on idle cores.")
    ] = 25.0,
    prompts: Annotated[
        int | None, typer.Option(min=2, help="Judging prompts, in place of what fits the budget.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every video.")] = 42,
    device: Annotated[str, typer.Option(help="auto, npu, cuda or cpu.")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder for results; default benchmarks/results.")
    ] = None,
    work: Annotated[
        Path, typer.Option(help="Folder for ledgers, searches and baseline videos.")
    ] = HERE / "work",
) -> None:
    """Measure, and write results.json, table.md and the figures."""
    folder = out or (work / "quick-results" if quick else HERE / "results")
    started = time.monotonic()
    lab = Lab(work, quick_size() if quick else full_size(budget, 2.0), seed, device)
    if not quick:
        lab.size = _settled(lab, budget)
    if prompts is not None:
        lab.size = replace(
            lab.size, judges=(prompts,) * 3, field_prompts=prompts, attribute_prompts=prompts
        )
    about = _about(lab)
    print(f"judging prompts {lab.size.judges}, work in {lab.work}", flush=True)
    with lab.device.exact_float32():
        for section in sections or [one for one in Section if one not in BY_NAME]:
            print(f"{section.value}:", flush=True)
            began = time.monotonic()
            found = RUNS[section](lab)
            found["wall_seconds"] = time.monotonic() - began
            _write(folder, lab, about, {section.value: found})
    minutes = (time.monotonic() - started) / 60
    print(f"{folder / 'table.md'} after {minutes:.1f} minutes", flush=True)


def _settled(lab: Lab, budget: float) -> Any:
    """The size that the budget allows here; a resumed run keeps the one it began with."""

    def measure() -> dict[str, Any]:
        request = Request(load_prompts("calibration")[0], lab.seed)
        lab.denoise(request, TimestepSchedule.uniform(5))
        return {"seconds": lab.denoise(request, lab.reference).seconds}

    seconds = lab.remembered(f"seconds per video, budget {budget:g}", measure)["seconds"]
    print(f"one uncached video takes {seconds:.2f} s of denoising here", flush=True)
    return full_size(budget, seconds)


def _about(lab: Lab) -> dict[str, Any]:
    versions = {"osp-opt": __version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_processor()}, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}",
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "device": lab.device.name,
        "model": lab.maker.loaded.fingerprint,
        "seed": lab.seed,
        "versions": versions,
    }


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown processor"
    names = [line.split(":", 1)[1] for line in text.splitlines() if line.startswith("model name")]
    return names[0].strip() if names else "unknown processor"


def _write(folder: Path, lab: Lab, about: dict[str, Any], found: dict[str, Any]) -> None:
    """Join with what other sections left (of the same model, size and seed), then draw."""
    path = folder / RESULTS_FILE
    size = asdict(lab.size)
    results: dict[str, Any] = {}
    if path.is_file():
        held = read_json(path, "benchmark results", max_bytes=1 << 28)
        same = {"model": about["model"], "seed": about["seed"]}
        if all(held.get("about", {}).get(k) == v for k, v in same.items()) and (
            held.get("size", {}).get("name") == lab.size.name
        ):
            results = {k: v for k, v in held.items() if k in RUNS_BY_NAME}
    results = {"about": about, "size": size, **results, **found}
    write_json(path, results)
    # Read again: what is drawn and tabled is what the file says.
    results = read_json(path, "benchmark results", max_bytes=1 << 28)
    atomic_write_text(folder / "table.md", table.render(results))
    if "steps" in results and "cache" in results:
        atomic_write_text(folder / "summary.md", summary(results))
    plots.draw(results, folder)


RUNS_BY_NAME = {section.value for section in RUNS}

if __name__ == "__main__":
    typer.run(main)
