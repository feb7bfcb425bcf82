"""Section `cache`: searched policies against other people's caches and the reference's search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.contest import (
    Entrant,
    Measured,
    NotRun,
    Runtime,
    contest,
    reason_of,
    summary,
)
from benchmarks.lab import Lab, column
from benchmarks.peers import peer_entrants
from benchmarks.reference_cache import INTERVAL, STAGE_ONE_START, CacheSearch, least_blocks
from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import OspOptError
from osp_opt.cache.policy import CachePolicy
from osp_opt.options import SearchCacheOptions
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import paired_difference, ratio_ci
from osp_opt.quality.metrics import mse
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.cache.block_times import BlockTimer, BlockTimes
from osp_opt.search.trials import policy_key
from osp_opt.tiny.prompts import load_prompts

__all__ = ["block_times", "policy_entrant", "policy_error", "run", "searched_policy"]

FOUR_FIELD, FREE = "osp-opt four-field", "osp-opt free"
REFERENCE = "reference tool's cache search"
GOAL_RATIO = 1.3
TIMED_STEPS = 24
SAME_SPEED = 0.02  # ratios nearer than this are not searched apart


def run(lab: Lab) -> dict[str, Any]:
    """Search, measure everything in turns on fresh prompts, and return the section's results."""
    size = lab.size
    reference, about = _reference(lab)
    entrants: list[Entrant] = [
        policy_entrant(lab, REFERENCE, "asked 1.3, raised", reference, about),
        _mindie(lab),
    ]
    missing: list[NotRun] = []
    equal = round(about["predicted_speedup"], 3)
    if equal <= GOAL_RATIO * (1.0 + SAME_SPEED):
        equal = GOAL_RATIO
    wanted = [(FOUR_FIELD, ratio) for ratio in size.four_field_ratios]
    wanted += [(FREE, ratio) for ratio in size.free_ratios]
    for method, ratios in ((FOUR_FIELD, size.four_field_ratios), (FREE, size.free_ratios)):
        if equal not in ratios:
            wanted.append((method, equal))
    for method, ratio in wanted:
        found = searched_policy(lab, method, ratio)
        if isinstance(found, NotRun):
            missing.append(found)
        else:
            entrants.append(found)
    peers, absent = peer_entrants(lab)
    measured, failed = contest(lab, "cache", [*entrants, *peers], lab.judging(size.judges[1]))
    rows = [summary(entrant, values) for entrant, values in measured]
    return {
        "rows": rows,
        "not_run": [vars(item) for item in (*missing, *absent, *failed)],
        "block_times": block_times(lab).as_json(),
        "against_reference": {
            method: _against_reference(measured, method, equal) for method in (FOUR_FIELD, FREE)
        },
        "equal_speed": [
            _at_equal_speed(own, measured) for own in measured if own[0].method == FREE
        ],
    }


def _mindie(lab: Lab) -> Entrant:
    """What MindIE hard-codes for Open-Sora-Plan v1.2: blocks 7 to 27 of 32 at every second step
    from step 20 of 100 on; here the same shares of this model's blocks and steps.
    """
    blocks, steps = lab.maker.num_blocks, len(lab.reference)
    policy = CachePolicy.four_field(
        round(7 / 32 * blocks), round(21 / 32 * blocks), round(20 / 100 * steps), 2
    )
    setting = f"its shares of {blocks} blocks"
    return policy_entrant(lab, "MindIE's own policy", setting, policy, {"peer": True})


def block_times(lab: Lab) -> BlockTimes:
    """Seconds of every block and of the rest of a step here."""

    def measure() -> dict[str, Any]:
        request = lab.deciding(1)[0]
        timer = BlockTimer(lab.device.synchronize)
        for steps in (3, TIMED_STEPS):
            lab.denoise(request, TimestepSchedule.uniform(steps), timer)
        return timer.result().as_json()

    held = lab.remembered("block times", measure)
    return BlockTimes(tuple(held["blocks"]), held["rest"], held["add"])


def policy_entrant(
    lab: Lab,
    method: str,
    setting: str,
    policy: CachePolicy,
    about: dict[str, Any],
    schedule: TimestepSchedule | None = None,
) -> Entrant:
    """A policy of ours as an entrant."""
    steps = lab.reference if schedule is None else schedule
    return Entrant(method, setting, steps, _opener(lab, policy, steps), policy_key(policy), about)


def _opener(
    lab: Lab, policy: CachePolicy, schedule: TimestepSchedule
) -> Callable[[], AbstractContextManager[Runtime]]:
    cache = lab.maker.block_cache(policy, _memory(lab))
    return lambda: nullcontext(Runtime(cache=cache))


def _memory(lab: Lab) -> SearchCacheOptions:
    return SearchCacheOptions(**lab.common, workdir=lab.work)


def searched_policy(
    lab: Lab, method: str, ratio: float, schedule: tuple[str, TimestepSchedule] | None = None
) -> Entrant | NotRun:
    """What `osp-opt search-cache` writes for a ratio; NotRun when it refuses."""
    size = lab.size
    free = method.startswith(FREE)
    name = f"{'free' if free else 'four'}-{ratio:g}" + (f"-{schedule[0]}" if schedule else "")
    values: dict[str, Any] = {
        **lab.common,
        "workdir": lab.work / "cache" / name,
        "text_prompt": load_prompts("verification"),
        "calibration": lab.calibration_folder,
        "steps": size.steps,
        "ratio": ratio,
        "policy": "free" if free else "four-field",
        "budget": size.cache_budget,
        "verify_prompts": size.deciding,
        "verify": True,
    }
    if schedule is not None:
        path = lab.work / "cache" / f"schedule-{schedule[0]}.txt"
        schedule[1].save(path)
        values |= {"schedule": path, "steps": len(schedule[1])}
    options = SearchCacheOptions(**values)

    def measure() -> dict[str, Any]:
        print(f"  osp-opt search-cache, {name}", flush=True)
        try:
            lab.run_job(options)
        except OspOptError as error:
            return {"refused": reason_of(error)}
        meta = _meta(options)
        return {
            "policy": CachePolicy.from_file(options.policy_path).to_json(),
            "text": meta["policy"],
            "predicted_speedup": meta["predicted_speedup"],
            "generations": meta["generations_spent"],
            "prompts": size.deciding,
            "evaluations": round(meta["generations_spent"] * size.deciding * options.steps),
        }

    budget = f"{size.cache_budget:g} {size.deciding}"
    held = lab.remembered(f"search-cache {name} {budget}", measure)
    if "refused" in held:
        return NotRun(method, f"--ratio {ratio:g}", held["refused"])
    about = {**held, "asked": ratio}
    policy = CachePolicy.from_json(held["policy"])
    return policy_entrant(
        lab, method, f"--ratio {ratio:g}", policy, about, schedule[1] if schedule else None
    )


def _meta(options: SearchCacheOptions) -> dict[str, Any]:
    meta = read_meta(options.policy_path)
    assert meta is not None
    return dict(meta)


def _reference(lab: Lab) -> tuple[CachePolicy, dict[str, Any]]:
    """The reference's policy, with its number of blocks raised until 1.3 is delivered."""
    times = block_times(lab)
    blocks, steps = lab.maker.num_blocks, lab.size.steps
    least = least_blocks(blocks, steps, GOAL_RATIO)

    def of(num: int) -> CachePolicy:
        return CachePolicy.four_field(1, num, STAGE_ONE_START, INTERVAL)

    num = least
    while num < blocks - 1 and times.speedup(of(num), steps) < GOAL_RATIO:
        num += 1
    requests = lab.deciding(lab.size.reference_prompts)

    def errors(policies: Sequence[CachePolicy]) -> list[float]:
        print(f"  {REFERENCE}: {len(policies)} policies", flush=True)
        return [
            float(np.mean([_pixel_error(lab, policy, request) for request in requests]))
            for policy in policies
        ]

    def measure() -> dict[str, Any]:
        result = CacheSearch(blocks, steps, errors).search(num)
        return {
            "policy": result.policy.to_json(),
            "text": str(result.policy),
            "predicted_speedup": times.speedup(result.policy, steps),
            "generations": result.equivalents,
            "full_runs": result.generations,
            "prompts": len(requests),
            "evaluations": round(result.equivalents * len(requests) * steps),
            "least_blocks": least,
            "raised_to": num,
            "nominal_at_least": of(least).speedup(blocks, steps),
        }

    held = lab.remembered(f"reference cache {num} {len(requests)}", measure)
    about = {key: value for key, value in held.items() if key != "policy"}
    return CachePolicy.from_json(held["policy"]), about


def policy_error(lab: Lab, policy: CachePolicy, request: Request) -> float:
    """Mean squared error of the latents against the uncached video's."""
    return _error(
        lab, policy, request, "latents", lambda z: mse(z.cpu(), lab.full_latents(request))
    )


def _pixel_error(lab: Lab, policy: CachePolicy, request: Request) -> float:
    """Mean squared error of the frames, which is what the reference's procedure looks at."""
    return _error(lab, policy, request, "reference cache", lambda z: lab.judge(z, request)["mse"])


def _error(
    lab: Lab,
    policy: CachePolicy,
    request: Request,
    kind: str,
    of_latents: Callable[[Tensor], float],
) -> float:
    def measure() -> dict[str, Any]:
        with _opener(lab, policy, lab.reference)() as runtime:
            made = lab.denoise(request, lab.reference, runtime.cache)
        return {"mse": of_latents(made.latents)}

    key = f"{kind} {policy_key(policy)} {request.seed} {request.prompt}"
    return float(lab.remembered(key, measure)["mse"])


def _against_reference(
    measured: Sequence[Measured], method: str, equal: float
) -> dict[str, Any] | None:
    """Mean squared errors of ours over the reference's, on the same fresh videos."""
    theirs = next((rows for entrant, rows in measured if entrant.method == REFERENCE), None)
    ours = next(
        (
            (entrant, rows)
            for entrant, rows in measured
            if entrant.method == method and entrant.about["asked"] == equal
        ),
        None,
    )
    if theirs is None or ours is None:
        return None
    pairs = np.stack([column(ours[1], "mse"), column(theirs, "mse")], axis=1)

    def ratio(values: np.ndarray[Any, Any], axis: int) -> Any:
        return np.divide(*np.moveaxis(values.mean(axis=axis), -1, 0))

    picks = np.random.default_rng(0).integers(len(pairs), size=(2000, len(pairs)))
    low, high = np.quantile(ratio(pairs[picks], 1), [0.025, 0.975])
    logs = np.log(np.maximum(pairs, 1e-12))
    return {
        "asked": equal,
        "mse_ratio": {
            "estimate": float(ratio(pairs, 0)),
            "low": float(low),
            "high": float(high),
            "count": len(pairs),
        },
        "geometric_mse_ratio": float(np.exp((logs[:, 0] - logs[:, 1]).mean())),
        "speedup": _speed(ours[1]),
        "reference_speedup": _speed(theirs),
        "psnr_gain": paired_difference(column(ours[1], "psnr"), column(theirs, "psnr")).as_json(),
    }


def _speed(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return ratio_ci([row["plain_seconds"] / row["seconds"] for row in rows]).as_json()


def _at_equal_speed(own: Measured, measured: Sequence[Measured]) -> dict[str, Any]:
    """A free policy against every peer's curve read at the policy's own measured speed-up.

    Curves are straight between settings, PSNR over the logarithm of the median speed-up, and read
    per prompt, so that the differences are paired. A peer whose fastest setting is slower does not
    reach the speed; for one whose slowest is faster that one counts.
    """
    entrant, rows = own
    speed = _speed(rows)["estimate"]
    psnr = column(rows, "psnr")
    against = {}
    methods = dict.fromkeys(e.method for e, _ in measured if e.about.get("peer"))
    for method in methods:
        curve = sorted(
            (_speed(found)["estimate"], column(found, "psnr"))
            for e, found in measured
            if e.method == method
        )
        speeds = np.log([point for point, _ in curve])
        if np.log(speed) > speeds[-1]:
            against[method] = {"fastest": float(np.exp(speeds[-1])), "gain": None}
            continue
        values = np.array([value for _, value in curve])
        read = [float(np.interp(np.log(speed), speeds, values[:, p])) for p in range(len(psnr))]
        against[method] = {
            "fastest": float(np.exp(speeds[-1])),
            "gain": paired_difference(psnr, read).as_json(),
        }
    return {"setting": entrant.setting, "speedup": speed, "against": against}
