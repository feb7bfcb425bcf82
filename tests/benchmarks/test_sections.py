"""What becomes of measurements: side by side, resumed, compared, tabled and drawn.

The model is a stand-in whose videos take a known time and have a known error, so that every figure
of the results can be told beforehand.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import cache, field, goals, plots, steps, table
from benchmarks.contest import Entrant, Runtime, contest, summary
from benchmarks.size import full_size, quick_size
from benchmarks.summary import summary as summary_of
from osp_opt.base.ledger import TrialLedger
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import mean_ci, ratio_ci, wilson
from osp_opt.sampling.schedule import TimestepSchedule

FULL = TimestepSchedule(TimestepSchedule.uniform(100).timesteps)


class StandIn:
    """A lab whose videos carry their own (speed-up, PSNR); the full length takes 8 seconds."""

    def __init__(self, folder: Path) -> None:
        self.ledger = TrialLedger(folder / "measurements.jsonl")
        self.reference = FULL
        self.sampled = 0

    def denoise(
        self, request: Request, schedule: TimestepSchedule, cache: Any = None, other: Any = None
    ) -> Any:
        self.sampled += 1
        speedup, psnr = cache or (100 / len(schedule), 120.0)
        return SimpleNamespace(seconds=8.0 / speedup, latents=psnr + request.seed)

    def judge(self, latents: float, request: Request) -> dict[str, float]:
        return {
            "psnr": latents,
            "converged": latents - 1.0,
            "mse": 10 ** (-latents / 10),
            "ssim": 0.9,
            "right": 0.75,
            "all_right": 0.0,
            "full_right": 1.0,
        }


def entrant(method: str, setting: str, speedup: float, psnr: float, **about: Any) -> Entrant:
    """Runs `speedup` times as fast and is `psnr` dB from the full length, plus the seed."""

    def opened() -> AbstractContextManager[Runtime]:
        return nullcontext(Runtime(cache=(speedup, psnr)))

    return Entrant(method, setting, FULL, opened, about=about)


REQUESTS = [Request("a", 0), Request("b", 2)]


def combined_rows(lab: Any) -> list[dict[str, Any]]:
    """What the goals of recipes are read off: 4x is 6 dB ahead, 8x 3 dB, 50 steps 1 dB behind."""
    spent = {"generations_spent": 15.9}
    entrants = [
        entrant("uniform", "100 steps", 1.0, 46.0, counted=1.0),
        entrant("recipe without reuse", "50 steps", 2.0, 45.0),
        entrant("search-steps", "12 steps", 8.3, 29.0),
        entrant("search-steps, search-cache free", "33 steps, --ratio 1.3", 4.0, 37.0),
        entrant("optimize", "--speedup 4: 32 steps", 4.0, 43.0, **spent),
        entrant("optimize", "--speedup 8: 15 steps", 8.0, 32.0, **spent),
        entrant("search-cache free", "100 steps, --ratio 2", 2.0, 55.0),
    ]
    measured, _ = contest(lab, "combined", entrants, REQUESTS)
    return [summary(one, values) for one, values in measured]


def field_section() -> dict[str, Any]:
    """One base, on which a peer is 2 dB ahead of ours at equal work."""
    rows = [
        {
            "base": "EulerDiscrete, 50 steps",
            "method": method,
            "setting": "here",
            "prompts": 2,
            "counted": 2.0,
            "psnr": mean_ci(psnrs).as_json(),
            "about": {"peer": True} if method == "theirs" else {},
            "values": {"psnr": psnrs},
        }
        for method, psnrs in (("theirs", [42.0, 44.0]), (cache.FREE, [40.0, 42.0]))
    ]
    equal = [{"base": "EulerDiscrete, 50 steps", **one} for one in field._at_equal_work(rows)]
    return {"rows": rows, "not_run": [], "equal_work": equal}


def four_field_choice(policy: str, error: float) -> dict[str, Any]:
    return {"policy": policy, "counted": 1.3, "deciding": error, "fresh": [error, 3 * error]}


def cache_entrants() -> list[Entrant]:
    cost = {"generations": 8.0, "prompts": 4, "evaluations": 3200, "predicted_speedup": 1.3}
    own = {**cost, "text": "blocks 1..6"}
    theirs = {**own, "full_runs": 34}
    peers = [
        entrant("diffusers FirstBlockCache", "threshold 0.1", 1.5, 34.0, peer=True),
        entrant("diffusers FirstBlockCache", "threshold 0.2", 3.0, 22.0, peer=True),
        entrant("diffusers MagCache", "threshold 0.1", 1.4, 30.0, peer=True),
    ]
    return [
        entrant(cache.REFERENCE, "asked 1.3, raised", 1.3, 30.0, **theirs),
        entrant(cache.FOUR_FIELD, "--ratio 1.3", 1.32, 34.0, asked=1.3, **own),
        entrant(cache.FREE, "--ratio 2", 2.1213203, 31.0, asked=2.0, **own),
        *peers,
    ]


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    return StandIn(tmp_path)


@pytest.fixture
def results(lab: Any) -> dict[str, Any]:
    """A results.json with every section, read back."""
    measured, _ = contest(lab, "cache", cache_entrants(), REQUESTS)
    rows = [summary(one, values) for one, values in measured]
    section = {
        "rows": rows,
        "not_run": [{"method": "theirs", "setting": "", "reason": "ImportError: no"}],
        "against_reference": {
            method: cache._against_reference(measured, method, 1.3)
            for method in (cache.FOUR_FIELD, cache.FREE)
        },
        "equal_speed": [cache._at_equal_speed(measured[2], measured)],
    }
    own = [
        (steps.UNIFORM, 50, 38.0, {}),
        (steps.TOOL, 50, 41.0, {"evaluations": 2000, "origin": "klub"}),
        ("dp, klub", 50, 40.0, {"evaluations": 0}),
        (steps.TOOL, 12, 27.0, {"evaluations": 900, "origin": "klub"}),
        (steps.UNIFORM, 12, 28.0, {}),
    ]
    found = []
    for method, length, psnr, about in own:
        one = replace(
            entrant(method, f"{length}", 100 / length, psnr, **about),
            schedule=TimestepSchedule.uniform(length),
        )
        ((_, values),), _ = contest(lab, "steps", [one], REQUESTS)
        even = 38.0 if length == 50 else 28.0
        gain = {"estimate": psnr - even, "low": psnr - even, "high": psnr - even, "count": 2}
        found.append({**summary(one, values), "gain": gain, "right_gain": gain})
    size = {**vars(full_size(25, 2.0)), "lengths": (50, 33, 25, 12)}
    whole = {
        "about": {
            "date": "today",
            "machine": "one",
            "cores": 2,
            "threads": 2,
            "load": "0.0",
            "device": "cpu",
            "model": "0123456789abcdef",
            "seed": 42,
            "versions": {"torch": "2.13.0"},
        },
        "size": size,
        "steps": {
            "rows": found,
            "reference_evaluations_at_50": 5280,
            "calibration_videos": 8,
        },
        "noise": {
            "rows": [
                {"noise": kind, "steps": 50, "psnr": mean_ci([level, level + 2]).as_json()}
                for kind, level in (("coupled", 40.0), ("independent", 17.0))
            ],
        },
        "samplers": {
            "rows": [
                {
                    "sampler": "EulerDiscrete",
                    "steps": 12,
                    "schedule": name,
                    "psnr": mean_ci([30.0, 32.0]).as_json(),
                    "gain": mean_ci([0.0, gain]).as_json(),
                }
                for name, gain in (("uniform", 0.0), ("deterministic", 0.2))
            ],
        },
        "cache": section,
        "predictor": {
            "prompts": 2,
            "rows": [
                {"group": "1.3x", "policies": 9, "correlations": {"score": 0.5, "blocks": None}},
            ],
        },
        "field": field_section(),
        "four-field": {
            "sampled": 30,
            "deciding_prompts": 2,
            "prompts": 2,
            "bound": 0.8,
            "ratio": ratio_ci([0.5, 2.0]).as_json(),
            "reference": four_field_choice("blocks 1..7 every 2 steps from step 5", 2e-5),
            "best": four_field_choice("blocks 0..11 every 2 steps from step 50", 1.6e-5),
        },
        "attention": {
            "prompts": 2,
            "share": 0.88,
            "rows": [
                {
                    "sampler": "EulerDiscrete",
                    "order": 1,
                    "against": "same work",
                    "ratio": ratio_ci([3.0, 3.0]).as_json(),
                }
            ],
        },
        "attributes": {
            "prompts": 4,
            "rows": [
                {
                    "sampler": "EulerDiscrete",
                    "steps": 100,
                    "right": {"motion": wilson([1.0, 1.0, 1.0, 0.0]).as_json()},
                    "moved": ratio_ci([0.9, 1.1]).as_json(),
                }
            ],
        },
        "combined": {"rows": combined_rows(lab), "not_run": [], "converged": 800},
        "scaling": {
            "cores": 2,
            "rows": [
                {
                    "stage": "search-steps",
                    "processes": 2,
                    "threads": 1,
                    "videos": 4,
                    "repeats": 2,
                    "seconds": {"estimate": 5.0, "low": 4.0, "high": None, "count": 2},
                    "speedup": {"estimate": 1.9, "low": 1.8, "high": 2.0, "count": 2},
                }
            ],
        },
    }
    loaded: dict[str, Any] = json.loads(json.dumps(whole, allow_nan=False))
    return loaded


def test_speeds_and_errors_come_out_as_they_are(results: dict[str, Any]) -> None:
    row = results["cache"]["rows"][1]
    assert row["speedup"]["estimate"] == pytest.approx(1.32)
    assert row["psnr"]["estimate"] == pytest.approx(35.0)  # 34 and 36
    assert row["loss"]["estimate"] == pytest.approx(0.25)
    # 4 dB better on both prompts.
    ratio = results["cache"]["against_reference"][cache.FOUR_FIELD]["mse_ratio"]
    assert ratio["estimate"] == pytest.approx(10**-0.4)
    assert ratio["low"] == pytest.approx(ratio["high"])


def test_peers_are_read_at_the_policys_own_speed(results: dict[str, Any]) -> None:
    (equal,) = results["cache"]["equal_speed"]
    # sqrt(1.5 * 3) lies half-way between the settings on the logarithmic axis: 28 dB.
    assert equal["against"]["diffusers FirstBlockCache"]["gain"]["estimate"] == pytest.approx(3.0)
    slow = equal["against"]["diffusers MagCache"]
    assert (slow["gain"], slow["fastest"]) == (None, pytest.approx(1.4))


def test_goals_say_what_is_reached(results: dict[str, Any]) -> None:
    verdicts = {goal.text: goal.verdict for goal in goals.goals(results)}
    expected = {
        "100 -> 50 steps: PSNR at least 2 dB above uniform-50": "reached",
        "100 -> 33 steps: within 1 % task quality": "not measured",
        "12 steps: never below uniform": "not reached",
        "1.3x: task-quality loss under 1 %": "not reached",
        "1.3x, four-field: mean squared error at most half of the reference procedure's": "reached",
        "1.3x, free: mean squared error at most half of the reference procedure's": "not measured",
        "free at 2x: better PSNR than diffusers FirstBlockCache at the same measured speed": (
            "reached"
        ),
        "free at 2x: better PSNR than cache-dit DBCache at the same measured speed": (
            "not measured"
        ),
        "osp-opt four-field --ratio 1.3: delivered within 3 %": "reached",
        "recipe without reuse, 50 steps: not below uniform, 100 steps, PSNR to the converged "
        "video": "not reached",
        "reuse only, 2x: at least 57 dB to the full length": "not reached",
        "reuse only, 3x: at least 51 dB to the full length": "not measured",
        "optimize --speedup 4: squared error to the converged video at most 0.3 of that of "
        "search-steps, search-cache free, 33 steps, --ratio 1.3": "reached",
        "optimize --speedup 8: squared error to the converged video at most 0.4 of that of "
        "search-steps, 12 steps": "not reached",
        "optimize: at most 16 generations after the calibration": "reached",
    }
    assert {text: verdicts[text] for text in expected} == expected


def test_table_and_figures_come_of_the_results(results: dict[str, Any], tmp_path: Path) -> None:
    page = table.render(results)
    for goal in goals.goals(results):
        assert f"| {goal.text} | {goal.measured or '-'} | {goal.verdict} |" in page
    assert "| theirs |  | ImportError: no |" in page
    assert "5280 at 50" in page
    assert "| 50 | 41.0 [28.3, 53.7] | 18.0 [5.3, 30.7] |" in page
    assert "| EulerDiscrete | 12 | deterministic | 31.0 [18.3, 43.7] | 0.1 [-1.2, 1.4] |" in page
    assert "| 1.3x | 9 | 0.50 | - |" in page
    assert "| against | osp-opt free here, 2.00x |" in page
    assert "| theirs | -2.0 [-2.0, -2.0] |" in page
    assert "| blocks 0..11 every 2 steps from step 50 | 1.30 | 1.60e-05 | 3.20e-05 |" in page
    assert "| EulerDiscrete | 100 | 75 [30, 95] | 0.99 [" in page
    assert "| EulerDiscrete | forecast | all blocks, same work | 3.00 [3.00, 3.00] |" in page
    drawn = plots.draw(results, tmp_path)
    assert [path.name for path in drawn] == [
        *("steps.png", "cache.png", "field.png", "combined.png", "frontier.png")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)


def test_the_short_table_is_of_the_results(results: dict[str, Any]) -> None:
    lines = summary_of(results).splitlines()
    assert any(
        line.startswith("| 50 | osp-opt search-steps | 42.0 [") and "| 3.0 [3.0, 3.0] |" in line
        for line in lines
    )
    assert sum(line.startswith("| osp-opt free --ratio 2 |") for line in lines) == 1
    assert "| diffusers MagCache | stops at 1.40x |" in lines
    assert "| diffusers FirstBlockCache | 3.0 [3.0, 3.0] |" in lines


def test_nothing_is_measured_twice(lab: Any, tmp_path: Path) -> None:
    first, _ = contest(lab, "cache", cache_entrants(), REQUESTS)
    again = StandIn(tmp_path)
    second, _ = contest(again, "cache", cache_entrants(), REQUESTS)
    assert [rows for _, rows in second] == [rows for _, rows in first]
    assert (lab.sampled > 0, again.sampled) == (True, 0)


def test_a_peer_that_fails_becomes_a_line(lab: Any) -> None:
    def broken() -> Any:
        raise RuntimeError("no such\nkernel in /somewhere/else/kernels.so")

    entrants = [Entrant("theirs", "x", FULL, broken), Entrant("plain", "", FULL)]
    measured, failed = contest(lab, "failing", entrants, REQUESTS)
    assert [(item.method, item.setting, item.reason) for item in failed] == [
        ("theirs", "x", "RuntimeError: no such kernel in .../kernels.so")
    ]
    ((one, rows),) = measured
    assert (one.method, len(rows)) == ("plain", 2)


def test_a_larger_budget_buys_prompts() -> None:
    small, large = full_size(40, 1.0), full_size(80, 1.0)
    assert all(a < b for a, b in zip(small.judges, large.judges, strict=True))
    assert quick_size().steps < small.steps == 100
