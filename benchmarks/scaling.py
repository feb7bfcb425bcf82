"""Section `scaling`: the verification stage of both searches on one and two processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.lab import Lab
from osp_opt.quality.intervals import mean_ci, ratio_ci

__all__ = ["run"]

LAYOUTS = ((1, 1), (1, 2), (2, 1))  # processes, threads each
STAGES = ("steps", "cache")
WORKER = "benchmarks.scaling_worker"


def run(lab: Lab) -> dict[str, Any]:
    """Wall times of the same videos sampled, judged and compared, side by side."""
    repeats = lab.size.scaling_repeats
    seconds: dict[tuple[int, int], list[dict[str, float]]] = {layout: [] for layout in LAYOUTS}
    for repeat in range(repeats):
        for layout in LAYOUTS:
            key = f"scaling {layout[0]}x{layout[1]} {lab.size.scaling_videos} {repeat}"
            held = lab.remembered(key, lambda layout=layout: _measure(lab, *layout))
            seconds[layout].append(held)
    rows = []
    for stage in STAGES:
        base = [values[stage] for values in seconds[LAYOUTS[0]]]
        for processes, threads in LAYOUTS:
            own = [values[stage] for values in seconds[processes, threads]]
            rows.append(
                {
                    "stage": f"search-{stage}",
                    "processes": processes,
                    "threads": threads,
                    "videos": lab.size.scaling_videos,
                    "repeats": repeats,
                    "seconds": mean_ci(own).as_json(),
                    "speedup": ratio_ci([a / b for a, b in zip(base, own, strict=True)]).as_json(),
                }
            )
    return {"rows": rows, "cores": len(os.sched_getaffinity(0))}


def _measure(lab: Lab, processes: int, threads: int) -> dict[str, float]:
    """One launch; what rank 0 timed between two barriers."""
    folder = lab.work / "scaling"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    work = {
        "steps": lab.size.steps,
        "half": lab.size.half,
        "videos": lab.size.scaling_videos,
        "seed": lab.seed,
        "common": lab.common,
        "blocks": lab.maker.num_blocks,
    }
    (folder / "work.json").write_text(json.dumps(work))
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": f"{threads}", "PYTHONPATH": path}
    environment.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *("--local-addr=127.0.0.1", f"--nproc-per-node={processes}"),
        *("-m", WORKER, str(folder)),
    ]
    print(f"  scaling: {processes} processes, {threads} threads each", flush=True)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    result = folder / "seconds.json"
    if done.returncode or not result.is_file():
        raise RuntimeError(f"scaling worker failed ({done.returncode}): {done.stderr[-800:]}")
    held: dict[str, float] = json.loads(result.read_text())
    return held
