"""Memory of this process and this machine, from the operating system (no torch)."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path


def process_memory() -> tuple[int | None, int, int | None]:
    """Bytes of memory: held by this process now, at most since it began, in the machine.

    The first is None where there is no ``/proc`` (macOS).
    """
    page = os.sysconf("SC_PAGE_SIZE")
    statm = Path("/proc/self/statm")
    resident = int(statm.read_text().split()[1]) * page if statm.exists() else None
    # ru_maxrss is in KiB on Linux and in bytes on macOS (getrusage(2)).
    peak_unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * peak_unit
    total = os.sysconf("SC_PHYS_PAGES") * page
    return resident, peak, total if total > 0 else None
