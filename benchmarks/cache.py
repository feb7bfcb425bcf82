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
from benchmarks.guidance_cache import GuidanceCache
from benchmarks.lab import Lab, column
from benchmarks.peers import peer_entrants
from benchmarks.planners import planned_policies
from benchmarks.reference_cache import INTERVAL, STAGE_ONE_START, CacheSearch, least_blocks
from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import OspOptError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.options import SearchCacheOptions
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import paired_difference, ratio_ci
from osp_opt.quality.metrics import mse
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.cache.block_times import BlockTimer, BlockTimes
from osp_opt.search.trials import policy_key
from osp_opt.tiny.prompts import load_prompts

__all__ = [
    "against_curves",
    "block_times",
    "field_entrants",
    "pixel_error",
    "policy_entrant",
    "policy_error",
    "reference_entrant",
    "run",
    "searched_policy",
]

FOUR_FIELD, FREE, GUIDANCE = "osp-opt four-field", "osp-opt free", "osp-opt guidance"
REFERENCE = "reference tool's cache search"
GOAL_RATIO = 1.3
GUIDANCE_INTERVALS = (2, 5)  # FasterCache has 5
TIMED_STEPS = 24
SAME_SPEED = 0.02  # ratios nearer than this are not searched apart


def run(lab: Lab) -> dict[str, Any]:
    """Search, measure everything in turns on fresh prompts, and return the section's results."""
    size = lab.size
    reference, about = reference_entrant(lab)
    equal = round(about["predicted_speedup"], 3)
    if equal <= GOAL_RATIO * (1.0 + SAME_SPEED):
        equal = GOAL_RATIO
    found: list[Entrant | NotRun] = [reference]
    for method, ratios in ((FOUR_FIELD, size.four_field_ratios), (FREE, size.free_ratios)):
        wanted = dict.fromkeys((*ratios, equal))
        found += [searched_policy(lab, method, ratio) for ratio in wanted]
    found += field_entrants(lab)
    entrants = [one for one in found if isinstance(one, Entrant)]
    missing = [one for one in found if isinstance(one, NotRun)]
    measured, failed = contest(lab, "cache", entrants, lab.judging(size.judges[1]))
    rows = [summary(entrant, values) for entrant, values in measured]
    return {
        "rows": rows,
        "not_run": [vars(item) for item in (*missing, *failed)],
        "block_times": block_times(lab).as_json(),
        "against_reference": {
            method: _against_reference(measured, method, equal) for method in (FOUR_FIELD, FREE)
        },
        "equal_speed": [
            _at_equal_speed(own, measured) for own in measured if own[0].method == FREE
        ],
    }


def field_entrants(lab: Lab) -> list[Entrant | NotRun]:
    """Everybody else's caches, for the steps and the sampler of `lab`."""
    steps = len(lab.reference)
    found = peer_entrants(lab)
    found.append(_mindie(lab))
    for planner, target, policy in planned_policies(lab, lab.size.targets):
        about = {"peer": True, "text": str(policy)}
        found.append(policy_entrant(lab, planner, f"{target:g}x", policy, about))
    for interval in GUIDANCE_INTERVALS:
        setting = f"negative branch at 1 of {interval} steps"
        runtime = _guidance_cache(lab, interval)
        found.append(
            Entrant("FasterCache CFG", setting, lab.reference, runtime, about={"peer": True})
        )
        plan = GuidancePlan.every(interval, steps)
        policy = CachePolicy.explicit({}, steps, guidance=plan)
        found.append(policy_entrant(lab, GUIDANCE, setting, policy, {}))
    return found


def _guidance_cache(lab: Lab, interval: int) -> Callable[[], AbstractContextManager[Runtime]]:
    model, steps = lab.maker.pipeline.transformer, len(lab.reference)
    return lambda: nullcontext(Runtime(transformer=GuidanceCache(model, steps, interval)))


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
    return Entrant(method, setting, steps, _opener(lab, policy), policy_key(policy), about)


def _opener(lab: Lab, policy: CachePolicy) -> Callable[[], AbstractContextManager[Runtime]]:
    cache = lab.block_cache(policy)
    return lambda: nullcontext(Runtime(cache=cache))


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


def reference_entrant(lab: Lab, times: BlockTimes | None = None) -> tuple[Entrant, dict[str, Any]]:
    """The reference's policy, with its number of blocks raised until 1.3 is delivered."""
    times = times or block_times(lab)
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
            float(np.mean([pixel_error(lab, policy, request) for request in requests]))
            for policy in policies
        ]

    def measure() -> dict[str, Any]:
        result = CacheSearch(blocks, steps, errors).search(num)
        return {
            "policy": result.policy.to_json(),
            "text": str(result.policy),
            "generations": result.equivalents,
            "full_runs": result.generations,
            "prompts": len(requests),
            "evaluations": round(result.equivalents * len(requests) * steps),
            "least_blocks": least,
            "raised_to": num,
            "nominal_at_least": of(least).speedup(blocks, steps),
        }

    held = lab.remembered(f"reference cache {num} {len(requests)}", measure)
    policy = CachePolicy.from_json(held["policy"])
    about = {**held, "predicted_speedup": times.speedup(policy, steps)}
    return policy_entrant(lab, REFERENCE, "asked 1.3, raised", policy, about), about


def policy_error(lab: Lab, policy: CachePolicy, request: Request) -> float:
    """Mean squared error of the latents against the uncached video's."""
    return _error(
        lab, policy, request, "latents", lambda z: mse(z.cpu(), lab.full_latents(request))
    )


def pixel_error(lab: Lab, policy: CachePolicy, request: Request) -> float:
    """Mean squared error of the frames, which is what the reference's procedure looks at."""
    return _error(lab, policy, request, "reference cache", lambda z: lab.frame_error(z, request))


def _error(
    lab: Lab,
    policy: CachePolicy,
    request: Request,
    kind: str,
    of_latents: Callable[[Tensor], float],
) -> float:
    def measure() -> dict[str, Any]:
        with _opener(lab, policy)() as runtime:
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
    """A free policy against every peer's curve read at the policy's own measured speed-up."""
    entrant, rows = own
    speed = _speed(rows)["estimate"]
    points = [
        (e.method, _speed(found)["estimate"], column(found, "psnr"))
        for e, found in measured
        if e.about.get("peer")
    ]
    against = against_curves(speed, column(rows, "psnr"), points)
    return {"setting": entrant.setting, "speedup": speed, "against": against}


def against_curves(
    speed: float, psnr: Sequence[float], points: Sequence[tuple[str, float, Sequence[float]]]
) -> dict[str, Any]:
    """By how much PSNR (per prompt) is ahead of every curve at `speed`; by method.

    `points` are (method, speed, PSNR per prompt) of peers' settings. Curves are straight between
    settings, PSNR over the logarithm of the speed, and read per prompt, so that the differences are
    paired. A peer whose fastest setting is slower does not reach the speed (gain None); for one
    whose slowest is faster that one counts.
    """
    against = {}
    for method in dict.fromkeys(name for name, _, _ in points):
        curve = sorted((at, values) for name, at, values in points if name == method)
        speeds = np.log([at for at, _ in curve])
        fastest = float(np.exp(speeds[-1]))
        if speed > fastest * (1.0 + SAME_SPEED):
            against[method] = {"fastest": fastest, "gain": None}
            continue
        values = np.array([psnrs for _, psnrs in curve])
        read = [float(np.interp(np.log(speed), speeds, values[:, p])) for p in range(len(psnr))]
        gain = paired_difference(psnr, read)
        against[method] = {"fastest": fastest, "gain": gain.as_json()}
    return against
