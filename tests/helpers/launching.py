"""Start a script on several real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 300


def run_ranks(
    script: Path, processes: int, *arguments: object, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``script`` by torch.distributed.run; raises where a process fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    done = subprocess.run(
        [sys.executable, *launcher, str(processes), str(script), *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done
