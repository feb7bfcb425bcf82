"""Every section, end to end, on a tiny random model: what is measured and what becomes of it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.contest import Entrant, contest
from benchmarks.lab import Lab
from benchmarks.size import full_size, quick_size

from benchmarks import cache, combined, goals, peers, plots, steps, table

SMOKE = {
    "steps": 12,
    "lengths": (6, 4),
    "judges": (2, 2, 1),
    "ays_lengths": (4,),
    "reference_lengths": (6,),
}


@pytest.fixture(scope="module")
def lab(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    model = {
        "model_path": str(tiny_checkpoint / "transformer"),
        "ae_path": str(tiny_checkpoint / "vae"),
        "text_encoder_name": str(tiny_checkpoint / "text_encoder"),
        "num_frames": 5,
        "height": 16,
        "width": 16,
        "guidance_scale": 2.0,
        "max_sequence_length": 16,
    }
    size = replace(
        quick_size(), **SMOKE, four_field_ratios=(1.05,), free_ratios=(1.1,), cache_budget=2
    )
    return Lab(tmp_path_factory.mktemp("bench"), size, 42, "cpu", model)


@pytest.fixture(scope="module")
def results(lab: Lab) -> dict[str, Any]:
    """All sections but scaling, through the JSON they are stored as."""
    found = {"steps": steps.run(lab), "cache": cache.run(lab), "combined": combined.run(lab)}
    about = {
        "date": "now",
        "machine": "one",
        "cores": 1,
        "threads": 1,
        "load": "0",
        "device": "cpu",
        "model": lab.maker.loaded.fingerprint,
        "seed": lab.seed,
        "versions": {"torch": "2"},
    }
    size = vars(lab.size)
    return json.loads(json.dumps({"about": about, "size": size, **found}, allow_nan=False))


def test_every_section_measures_everything(results: dict[str, Any], lab: Lab) -> None:
    methods = {row["method"] for row in results["steps"]["rows"]}
    assert {"uniform", steps.TOOL, steps.AYS, steps.REFERENCE} <= methods
    assert sum(method.startswith("dp,") for method in methods) == 4
    uniform = [row for row in results["steps"]["rows"] if row["method"] == "uniform"]
    assert [row["gain"]["estimate"] for row in uniform] == [0.0, 0.0]
    rows = results["cache"]["rows"]
    absent = {item["method"] for item in results["cache"]["not_run"]}
    seen = {row["method"] for row in rows} | absent
    assert {cache.REFERENCE, cache.FOUR_FIELD, cache.FREE} <= seen
    assert {
        "diffusers FirstBlockCache",
        "diffusers MagCache",
        "diffusers SeaCache",
        "diffusers TaylorSeer",
        "diffusers TaylorSeer (lite)",
        "diffusers PAB",
    } <= {row["method"] for row in rows}
    assert all(len(row["values"]["psnr"]) == 2 for row in rows)
    assert {row["method"] for row in results["combined"]["rows"]} >= {"steps"}


def test_table_and_figures_come_of_the_results(results: dict[str, Any], tmp_path: Path) -> None:
    page = table.render(results)
    for goal in goals.goals(results):
        assert f"| {goal.text} | {goal.measured or '-'} | {goal.verdict} |" in page
    drawn = plots.draw(results, tmp_path)
    assert [path.name for path in drawn] == ["steps.png", "cache.png", "combined.png"]
    assert all(path.stat().st_size > 10_000 for path in drawn)


def test_nothing_is_measured_twice(lab: Lab, results: dict[str, Any]) -> None:
    before = len(lab.ledger)
    again = Lab(
        lab.work.parent,
        lab.size,
        lab.seed,
        "cpu",
        {k: v for k, v in lab.common.items() if k not in ("device", "seed")},
    )
    assert json.loads(json.dumps(cache.run(again))) == {
        k: v for k, v in results["cache"].items() if k != "wall_seconds"
    }
    assert len(again.ledger) == before


def test_a_peer_that_fails_becomes_a_line(lab: Lab) -> None:
    def broken() -> Any:
        raise RuntimeError("no such kernel")

    entrants = [Entrant("theirs", "x", lab.reference, broken), Entrant("plain", "", lab.reference)]
    measured, failed = contest(lab, "failing", entrants, lab.judging(1))
    assert [(item.method, item.reason) for item in failed] == [
        ("theirs", "RuntimeError: no such kernel")
    ]
    ((entrant, rows),) = measured
    assert (entrant.method, rows[0]["psnr"]) == ("plain", 120.0)


def test_a_library_that_cannot_be_imported_becomes_a_line(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    entrants, missing = peers.peer_entrants(lab)
    assert {item.method for item in missing} == {
        "cache-dit DBCache",
        "cache-dit DBCache + TaylorSeer",
    }
    assert any(entrant.method == "diffusers FirstBlockCache" for entrant in entrants)


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("diffusers FirstBlockCache", "threshold 0.03"),
        ("diffusers TaylorSeer (lite)", "interval 2"),
    ],
)
def test_a_peer_leaves_nothing_behind(lab: Lab, method: str, setting: str) -> None:
    """The same video twice gives the same result, and the lab's own model stays exact."""
    entrants, _ = peers.peer_entrants(lab)
    (entrant,) = [e for e in entrants if (e.method, e.setting) == (method, setting)]
    request = lab.judging(1)[0]
    made = []
    for _ in range(2):
        with entrant.opened() as runtime:
            video = lab.denoise(request, lab.reference, runtime.cache, runtime.transformer)
        made.append(video.latents)
    assert bool((made[0] == made[1]).all())
    exact = lab.denoise(request, lab.reference).latents
    assert lab.judge(exact, request)["psnr"] == 120.0


def test_the_budget_buys_prompts() -> None:
    small, large = full_size(25, 2.0), full_size(120, 2.0)
    assert all(a < b for a, b in zip(small.judges, large.judges, strict=True))
    assert small.lengths == large.lengths == (50, 33, 25, 12)
