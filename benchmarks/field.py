"""Section `field`: every cache again, with other samplers and on searched steps, at counted work.

People's caches were made for deterministic samplers, where hidden states change smoothly; the
original's ancestral one drives them by fresh noise. So all entrants run again with EulerDiscrete
and DPM-Solver++ at half of the original's steps, and with the ancestral sampler on as many searched
steps. PSNR is to the plain video of the same sampler and steps. Nothing is timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.cache import (
    FOUR_FIELD,
    FREE,
    GOAL_RATIO,
    GUIDANCE,
    against_curves,
    field_entrants,
    policy_entrant,
    policy_error,
    reference_entrant,
)
from benchmarks.contest import Entrant, NotRun, reason_of
from benchmarks.lab import Lab
from benchmarks.predictor import probed_importance
from benchmarks.steps import searched
from osp_opt.base.samplers import SAMPLER_KINDS
from osp_opt.cache.policy import CachePolicy
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import mean_ci
from osp_opt.quality.metrics import MAX_PSNR, psnr
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.cache.block_times import BlockTimes
from osp_opt.search.cache.candidates import MAX_INTERVAL, four_field_candidates
from osp_opt.search.cache.plans import free_candidates
from osp_opt.search.cache.scores import ReuseErrors, four_field_scores

__all__ = ["DECIDING", "equal_times", "run"]

TARGETS = (1.5, 2.0)  # times less work
CANDIDATES, DECIDING = 6, 2  # of ours, and prompts that decide between them
ANCESTRAL = next(iter(SAMPLER_KINDS))


def run(lab: Lab) -> dict[str, Any]:
    """Every entrant on every base, judged on fresh prompts."""
    requests = lab.judging(lab.size.field_prompts)
    found: dict[str, Any] = {"rows": [], "not_run": [], "equal_work": []}
    for base, there in _bases(lab):
        print(f"  {base}:", flush=True)
        rows, missing = _judged(there, _entrants(there), requests)
        found["rows"] += [{"base": base, **row} for row in rows]
        found["equal_work"] += [{"base": base, **one} for one in _at_equal_work(rows)]
        found["not_run"] += [{"base": base, **vars(one)} for one in missing]
    return found


def _bases(lab: Lab) -> Iterator[tuple[str, Lab]]:
    """What the videos without a cache are made with."""
    half = lab.size.half
    even = TimestepSchedule(TimestepSchedule.uniform(half).timesteps)
    size = replace(lab.size, steps=half, targets=TARGETS, knobs=len(TARGETS), reference_prompts=1)
    for sampler in ("EulerDiscrete", "DPMSolverMultistep"):
        where = lab.work / "field" / sampler
        yield (
            f"{sampler}, {half} steps",
            Lab(where, size, lab.seed, lab.device.name, {"sampler": sampler}, even),
        )
    steps = TimestepSchedule(tuple(searched(lab, (half,))[f"{half}"]["timesteps"]))
    yield (
        f"{ANCESTRAL}, {half} searched steps",
        Lab(
            lab.work / "field" / "searched",
            size,
            lab.seed,
            lab.device.name,
            schedule=steps,
            calibration=lab.calibration_folder,
        ),
    )


def _entrants(lab: Lab) -> list[Entrant | NotRun]:
    times = equal_times(lab)
    return [*_own(lab, times), reference_entrant(lab, times)[0], *field_entrants(lab)]


def equal_times(lab: Lab) -> BlockTimes:
    """Blocks that cost the same, and nothing else that does: counted work."""
    return BlockTimes((1.0,) * lab.maker.num_blocks, 0.0)


def _own(lab: Lab, times: BlockTimes) -> Iterator[Entrant]:
    """What search-cache would race, planned for counted work, and the first of a small race."""
    errors = ReuseErrors.of(lab.calibration, lab.reference.timesteps, MAX_INTERVAL - 1)
    weights = probed_importance(lab, errors)
    scores = four_field_scores(errors, weights, range(2, MAX_INTERVAL + 1))
    rule = four_field_candidates(scores, times, errors.num_steps, GOAL_RATIO, CANDIDATES)
    yield _best(lab, FOUR_FIELD, GOAL_RATIO, [one.policy for one in rule])
    for target in TARGETS:
        plans = free_candidates(errors, weights, times, target, CANDIDATES, guided=True)
        yield _best(lab, FREE, target, [one.policy for one in plans])


def _best(lab: Lab, method: str, target: float, policies: list[CachePolicy]) -> Entrant:
    """Of least error (mean logarithm) on prompts that decide."""
    print(f"  {method} {target:g}x: {len(policies)} policies", flush=True)
    errors = [
        [np.log(policy_error(lab, policy, request)) for request in lab.deciding(DECIDING)]
        for policy in policies
    ]
    best = policies[int(np.argmin(np.mean(errors, axis=1)))]
    return policy_entrant(lab, method, f"{target:g}x", best, {"text": str(best)})


def _judged(
    lab: Lab, entrants: list[Entrant | NotRun], requests: list[Request]
) -> tuple[list[dict[str, Any]], list[NotRun]]:
    """PSNR and counted work of each; prompt after prompt, so that a run that is stopped has
    compared all on the first ones.
    """
    failed = [one for one in entrants if isinstance(one, NotRun)]
    left = [one for one in entrants if isinstance(one, Entrant)]
    values: dict[str, list[dict[str, Any]]] = {one.key: [] for one in left}
    for number, request in enumerate(requests):
        for entrant in list(left):
            try:
                values[entrant.key].append(_measured(lab, entrant, request))
            except Exception as error:  # noqa: BLE001 - other people's code, any failure
                left.remove(entrant)
                failed.append(NotRun(entrant.method, entrant.setting, reason_of(error)))
                print(f"  {entrant.method}: not run: {failed[-1].reason}", flush=True)
        print(f"  prompt {number + 1} of {len(requests)}", flush=True)
    rows = []
    for entrant in left:
        psnrs, work = ([v[name] for v in values[entrant.key]] for name in ("psnr", "work"))
        rows.append(
            {
                "method": entrant.method,
                "setting": entrant.setting,
                "prompts": len(psnrs),
                "counted": float(lab.plain_work / np.mean(work)),
                "psnr": mean_ci(psnrs).as_json(),
                "about": entrant.about,
                "values": {"psnr": psnrs, "work": work},
            }
        )
    return rows, failed


def _at_equal_work(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Our free policies against everybody's curve at the same counted work."""
    peers = [
        (row["method"], row["counted"], row["values"]["psnr"])
        for row in rows
        if row["about"].get("peer")
    ]
    for row in rows:
        if row["method"] in (FREE, GUIDANCE):
            against = against_curves(row["counted"], row["values"]["psnr"], peers)
            yield {name: row[name] for name in ("method", "setting", "counted")} | {
                "against": against
            }


def _measured(lab: Lab, entrant: Entrant, request: Request) -> dict[str, Any]:
    def measure() -> dict[str, Any]:
        with entrant.opened() as runtime:
            latents, work = lab.counted(
                request, entrant.schedule, runtime.cache, runtime.transformer
            )
        frames = lab.maker.decode(latents)
        return {"psnr": min(psnr(frames, lab.full(request)), MAX_PSNR), "work": work}

    return lab.remembered(f"field {entrant.key} {request.seed} {request.prompt}", measure)
