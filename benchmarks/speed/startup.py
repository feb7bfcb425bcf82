"""From `osp-opt sample` on the command line to the first denoising step, in fresh processes."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

FIRST_STEP = "sampling ("
"""How the line begins that the worker prints when all is loaded and denoising starts."""


def run(repeats: int) -> dict[str, Any]:
    """Wall seconds to the first step; processor seconds of a whole run of one step."""
    wall, cpu = zip(*(measure() for _ in range(repeats)), strict=True)
    return {
        "machine": {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
        "repeats": repeats,
        "load_average": os.getloadavg()[0],
        "seconds_to_first_step": {"median": median(wall), "least": min(wall), "all": wall},
        "cpu_seconds_of_the_run": {"median": median(cpu), "all": cpu},
        "modules": modules(),
    }


def measure() -> tuple[float, float]:
    """Seconds until denoising starts, and the processors' seconds until the process has ended."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(sys.executable, "-m", "osp_opt", "sample", "--device", "cpu"),
            *("--steps", "1", "--num-prompts", "1", "--out", str(Path(folder) / "run")),
        ]
        used, start = processor_seconds(), time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = next(
                (time.perf_counter() for line in process.stdout if line.startswith(FIRST_STEP)),
                None,
            )
            process.stdout.read()
        if process.returncode != 0 or first is None:
            raise SystemExit(f"{' '.join(command)}: exit code {process.returncode}")
    return first - start, processor_seconds() - used


def processor_seconds() -> float:
    """Of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def modules() -> int:
    """Python modules that a worker has loaded when its job is imported."""
    code = "import sys, osp_opt.run.worker, osp_opt.generate.job; print(len(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout)
