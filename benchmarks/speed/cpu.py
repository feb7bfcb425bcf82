"""The original's step against osp-opt's on a CPU, eager and compiled, in one interleaved run."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from benchmarks.speed.measuring import Times, interleaved, machine, ratio
from benchmarks.speed.operations import StepWork
from benchmarks.speed.steps import optimised, original
from benchmarks.speed.subjects import Subject, bundled, mid_size
from osp_opt.system.device import Device

SUBJECTS = {"bundled": bundled, "mid-size": mid_size}


def run(names: list[str], repeats: int, compiled: bool) -> dict[str, Any]:
    """Median seconds per guided step of each way, and how many times faster than the original."""
    device = Device.open("cpu", dtype="float32")
    results = {}
    for name in names:
        subject = SUBJECTS[name](device)
        results[name] = measure(subject, device, repeats, compiled)
    return {"machine": machine(device), "subjects": results}


def measure(subject: Subject, device: Device, repeats: int, compiled: bool) -> dict[str, Any]:
    """One subject's table."""
    fused = replace(subject, model=copy.deepcopy(subject.model))
    fused.model.fuse_qkv_projections()
    actions: dict[str, Any] = {
        "original": original(subject),
        "osp-opt, q/k/v apart": optimised(subject),
        "osp-opt, branches in turn": optimised(fused, in_turn=True),
        "osp-opt": optimised(fused),
    }
    if compiled:
        quick = replace(subject, model=copy.deepcopy(fused.model))
        quick.model.compile_repeated_blocks()
        actions["original, compiled"] = original(subject, compiled=True)
        actions["osp-opt, compiled"] = optimised(quick)
    times = interleaved(actions, device, repeats, warm_ups=2)
    work = StepWork.of(subject.model.config, subject.shape.latent(), subject.prompts.longest)
    return {
        "tokens": work.tokens,
        "operations": work.total,
        "ways": {name: _row(name, times) for name in actions},
    }


def _row(name: str, times: dict[str, Times]) -> dict[str, Any]:
    own, first = times[name], times["original"]
    row = {**own.as_json(), "speedup": ratio(first, own), "cpu_speedup": ratio(first, own, "cpu")}
    if name.endswith("compiled") and name != "original, compiled":
        row["speedup_over_compiled_original"] = ratio(times["original, compiled"], own)
    return row
