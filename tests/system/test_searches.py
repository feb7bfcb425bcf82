"""All searches on one and on several processes: the same decision, files and measurements."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import searches_on_ranks
from launching import run_ranks
from searches_on_ranks import STEPS, searches

from osp_opt.base.ledger import TrialLedger
from osp_opt.base.progress import Progress
from osp_opt.calibration import job as calibrate
from osp_opt.options import CalibrateOptions
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel

CLOCK = ("seconds", "speedup", "timed_on")
PROCESSES = (1, 2, 4) if "OSP_OPT_KILLS" in os.environ else (1, 2)


def found(workdir: Path, checkpoint: Path) -> list[Any]:
    """What the searches in a folder wrote and measured, without what a clock said."""
    result: list[Any] = []
    for options in searches(workdir, checkpoint):
        named = ("schedule_path", "policy_path", "recipe_path")
        (path,) = [getattr(options, name) for name in named if hasattr(options, name)]
        result.append(json.loads(path.read_text()))
        ledger = TrialLedger(options.run_dir / "trials.jsonl")
        for key, values in ledger.records():
            parts = [{n: v for n, v in part.items() if n not in CLOCK} for part in (key, values)]
            result.append((json.dumps(parts[0], sort_keys=True), parts[1]))
    return result


def differences(one: Any, other: Any) -> list[tuple[Any, Any]]:
    """Where they differ; numbers by more than what several ranks on one video round otherwise."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [d for key in one for d in differences(one[key], other[key])]
    if isinstance(one, tuple | list) and len(one) == len(other):
        return [d for a, b in zip(one, other, strict=True) for d in differences(a, b)]
    if isinstance(one, float) and math.isclose(one, other, rel_tol=0.02, abs_tol=5e-8):
        return []
    return [] if one == other else [(one, other)]


def test_searches_decide_the_same_on_any_number_of_processes(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    first = tmp_path / "calibrated"
    options = CalibrateOptions(
        model_path=str(tiny_checkpoint),
        workdir=first,
        steps=STEPS,
        text_prompt=("a boat", "a tree"),
    )
    options.run_dir.mkdir(parents=True)
    context = WorkerContext(Device.open("cpu"), Parallel(), options.run_dir, Progress(1))
    calibrate.run(options, context)
    results = []
    for processes in PROCESSES:
        workdir = tmp_path / f"on-{processes}"
        shutil.copytree(first, workdir)
        run_ranks(searches_on_ranks.main, processes, workdir, tiny_checkpoint, logs=tmp_path)
        results.append(found(workdir, tiny_checkpoint))
    assert len(results[0]) > 20
    for result in results[1:]:
        assert differences(result, results[0]) == []

    # What a killed optimize leaves, half of its measurements, is enough to end in the same way.
    workdir = tmp_path / "on-1"
    optimize = searches(workdir, tiny_checkpoint)[-1]
    ledger = optimize.run_dir / "trials.jsonl"
    lines = ledger.read_text().splitlines(keepends=True)
    half = lines[: len(lines) // 2]
    half += [line for line in lines[len(half) :] if '"speed"' in line]  # so that no clock decides
    ledger.write_text("".join(half) + lines[-1][:20])
    (optimize.run_dir / "recipe.json").unlink()
    run_ranks(searches_on_ranks.main, 1, workdir, tiny_checkpoint, logs=tmp_path)
    assert set(map(repr, found(workdir, tiny_checkpoint))) == set(map(repr, results[0]))
