"""The numbers that were asked for, one line each: what was measured, and whether that reaches it.

A goal about a difference counts as reached by its estimate; the interval stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.cache import FOUR_FIELD, FREE
from benchmarks.steps import TOOL
from osp_opt.quality.intervals import paired_difference

__all__ = ["Goal", "goals", "interval_text"]

MAX_LOSS = 0.01
PEERS = (
    "diffusers FirstBlockCache",
    "diffusers MagCache",
    "diffusers TaylorSeer",
    "diffusers TaylorSeer (lite)",
    "cache-dit DBCache",
    "cache-dit DBCache + TaylorSeer",
)


@dataclass(frozen=True)
class Goal:
    """`reached` is None when it was not measured."""

    text: str
    measured: str
    reached: bool | None

    @property
    def verdict(self) -> str:
        return {True: "reached", False: "not reached", None: "not measured"}[self.reached]


def interval_text(values: dict[str, Any], form: str = ".1f", scale: float = 1.0) -> str:
    """`estimate [low, high]`."""
    parts = [
        "?" if values[name] is None else format(values[name] * scale, form)
        for name in ("estimate", "low", "high")
    ]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


def goals(results: dict[str, Any]) -> list[Goal]:
    """Every goal of the step search, of the cache and of recipes."""
    return [*_step_goals(results), *_cache_goals(results), *_recipe_goals(results)]


def _find(rows: Sequence[dict[str, Any]], method: str, setting: str) -> dict[str, Any] | None:
    return next((r for r in rows if (r["method"], r["setting"]) == (method, setting)), None)


def _step_goals(results: dict[str, Any]) -> list[Goal]:
    section = results.get("steps")
    size = results["size"]
    full, lengths = size["steps"], size["lengths"]
    half, third = lengths[0], lengths[1]
    rows = section["rows"] if section else []
    found = {length: _find(rows, TOOL, f"{length}") for length in lengths}
    listed = [
        _gain(f"{full} -> {half} steps: PSNR at least 2 dB above uniform-{half}", found[half], 2.0),
        _loss(f"{full} -> {half} steps: no measurable loss of task quality", found[half], None),
        _loss(f"{full} -> {third} steps: within 1 % task quality", found[third], MAX_LOSS),
    ]
    for length in lengths[2:]:
        listed.append(_gain(f"{length} steps: never below uniform", found[length], 0.0))
    cost = "network evaluations of the dp search after calibration: 0 (the reference: 5280)"
    if section:
        made = [r["about"]["evaluations"] for r in rows if r["method"].startswith("dp,")]
        tool = found[half]
        raced = "?" if tool is None else tool["about"]["evaluations"]
        theirs = section["reference_evaluations_at_50"]
        text = (
            f"{max(made)} for the table and the programme; {raced} more for race and verification "
            f"at {half} steps; the reference {theirs} at 50"
        )
        listed.append(Goal(cost, text, max(made) == 0))
    else:
        listed.append(Goal(cost, "", None))
    return listed


def _gain(text: str, row: dict[str, Any] | None, least: float) -> Goal:
    if row is None:
        return Goal(text, "", None)
    gain = row["gain"]
    origin = row["about"]["origin"]
    return Goal(text, f"{interval_text(gain)} dB ({origin})", gain["estimate"] >= least)


def _loss(text: str, row: dict[str, Any] | None, most: float | None) -> Goal:
    """`most` None: reached when the interval of the loss holds 0 or less."""
    if row is None:
        return Goal(text, "", None)
    loss = row["loss"]
    reached = (loss["low"] or 0.0) <= 0.0 if most is None else loss["estimate"] < most
    speed = interval_text(row["speedup"], ".2f")
    return Goal(text, f"loss {interval_text(loss, '.1f', 100)} %, {speed}x faster", reached)


def _cache_goals(results: dict[str, Any]) -> list[Goal]:
    section = results.get("cache")
    rows = section["rows"] if section else []
    four = _find(rows, FOUR_FIELD, "--ratio 1.3")
    listed = []
    for method in (FOUR_FIELD, FREE):
        against = section["against_reference"][method] if section else None
        listed.append(_halves_the_error(method, against))
    listed.append(_loss("1.3x: task-quality loss under 1 %", four, MAX_LOSS))
    at = _find(rows, FREE, "--ratio 1.5")
    other = _find(rows, FOUR_FIELD, "--ratio 1.5")
    listed.append(_psnr("1.5x, four-field: at least 30 dB", other))
    listed.append(_psnr("1.5x, free: at least 30 dB", at))
    twice = _find(rows, FREE, "--ratio 2")
    listed.append(_loss("free at 2x: task-quality loss under 1 %", twice, MAX_LOSS))
    equal = next(
        (e for e in (section or {}).get("equal_speed", []) if e["setting"] == "--ratio 2"), None
    )
    for peer in PEERS:
        listed.append(_beats(peer, equal))
    for row in rows:
        if row["method"] in (FOUR_FIELD, FREE):
            listed.append(_delivered(row))
    if section:
        listed.append(_work(rows))
    return listed


def _halves_the_error(method: str, against: dict[str, Any] | None) -> Goal:
    kind = method.removeprefix("osp-opt ")
    text = f"1.3x, {kind}: mean squared error at most half of the reference procedure's"
    if against is None:
        return Goal(text, "", None)
    speeds = [against[name]["estimate"] for name in ("speedup", "reference_speedup")]
    measured = (
        f"ratio {interval_text(against['mse_ratio'], '.2f')} of means, "
        f"{against['geometric_mse_ratio']:.2f} geometric; "
        f"measured {speeds[0]:.2f}x against {speeds[1]:.2f}x"
    )
    return Goal(text, measured, against["mse_ratio"]["estimate"] <= 0.5)


def _psnr(text: str, row: dict[str, Any] | None, least: float = 30.0) -> Goal:
    if row is None:
        return Goal(text, "", None)
    speed = interval_text(row["speedup"], ".2f")
    measured = f"{interval_text(row['psnr'])} dB at {speed}x"
    return Goal(text, measured, row["psnr"]["estimate"] >= least)


def _beats(peer: str, equal: dict[str, Any] | None) -> Goal:
    text = f"free at 2x: better PSNR than {peer} at the same measured speed"
    if equal is None or peer not in equal["against"]:
        return Goal(text, "", None)
    found = equal["against"][peer]
    if found["gain"] is None:
        measured = f"it gets to {found['fastest']:.2f}x only; free runs at {equal['speedup']:.2f}x"
        return Goal(text, measured, True)
    gain = found["gain"]
    return Goal(text, f"{interval_text(gain)} dB at {equal['speedup']:.2f}x", gain["estimate"] > 0)


def _delivered(row: dict[str, Any]) -> Goal:
    asked = row["about"]["asked"]
    text = f"{row['method']} {row['setting']}: delivered within 3 %"
    speed = row["speedup"]
    return Goal(text, f"{interval_text(speed, '.3f')}x", speed["estimate"] >= 0.97 * asked)


def _recipe_goals(results: dict[str, Any]) -> list[Goal]:
    section = results.get("combined")
    rows = section["rows"] if section else []
    size = results["size"]
    full, (half, third, *_, least) = size["steps"], size["lengths"]
    uniform, planned = "uniform", "recipe without reuse"
    both = "search-steps, search-cache free"
    listed = [
        _nearer(rows, (planned, f"{half} steps"), (uniform, f"{full} steps"), 0.0),
        _nearer(rows, (planned, f"{third} steps"), (uniform, f"{half} steps"), 1.0),
    ]
    for ratio, goal in ((2, 57.0), (3, 51.0)):
        setting = f"{full} steps, --ratio {ratio}"
        text = f"reuse only, {ratio}x: at least {goal:g} dB to the full length"
        listed.append(_psnr(text, _find(rows, "search-cache free", setting), goal))
    for speed, most, other in (
        (4, 0.3, (both, f"{third} steps, --ratio 1.3")),
        (8, 0.4, ("search-steps", f"{least} steps")),
    ):
        own = next((r for r in rows if r["setting"].startswith(f"--speedup {speed}:")), None)
        than = _find(rows, *other)
        text = (
            f"optimize --speedup {speed}: squared error to the converged video at most {most:g} of "
            f"that of {', '.join(other)}"
        )
        if own is None or than is None:
            listed.append(Goal(text, "", None))
            continue
        gain = paired_difference(own["values"]["converged"], than["values"]["converged"])
        share, low, high = (10 ** (-x / 10) for x in (gain.estimate, gain.high, gain.low))
        listed.append(Goal(text, f"{share:.2f} [{low:.2f}, {high:.2f}], geometric", share <= most))
    spent = [row["about"]["generations_spent"] for row in rows if row["method"] == "optimize"]
    text = "optimize: at most 16 generations after the calibration"
    told = f"at most {max(spent):.1f}" if spent else ""
    return [*listed, Goal(text, told, max(spent) <= 16.05 if spent else None)]


def _nearer(
    rows: Sequence[dict[str, Any]], own: tuple[str, str], other: tuple[str, str], least: float
) -> Goal:
    """Reached when the difference is `least` or more, by its estimate."""
    text = (
        f"{', '.join(own)}: not below {', '.join(other)}{f' + {least:g} dB' if least else ''}, "
        "PSNR to the converged video"
    )
    found, than = _find(rows, *own), _find(rows, *other)
    if found is None or than is None:
        return Goal(text, "", None)
    gain = paired_difference(found["values"]["converged"], than["values"]["converged"])
    return Goal(text, f"{interval_text(gain.as_json())} dB", gain.estimate >= least)


def _work(rows: Sequence[dict[str, Any]]) -> Goal:
    made = [r["about"]["generations"] for r in rows if r["method"] in (FOUR_FIELD, FREE)]
    theirs = [r["about"] for r in rows if "full_runs" in r["about"]]
    text = "search cost: at most 12 generations per prompt set"
    if not made:
        return Goal(text, "", None)
    measured = f"at most {max(made):.1f}"
    if theirs:
        about = theirs[0]
        measured += (
            f"; the reference's procedure {about['full_runs']} generations per prompt "
            f"({about['generations']:.1f} in block work)"
        )
    return Goal(text, measured, max(made) <= 12.05)
