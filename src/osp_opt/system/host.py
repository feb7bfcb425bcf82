"""This process and this machine, as far as can be said without torch."""

from __future__ import annotations

import gc
import importlib.util
import os
import platform
import re
import resource
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path

SPINS = 5000
"""Rounds of waiting, a tenth of a millisecond or so: as between two operations of a step."""
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size


def process_memory() -> tuple[int | None, int, int | None]:
    """Bytes of memory: held by this process now, at most until now, in the machine.

    The first is None where there is no ``/proc`` (macOS). The second counts from
    :func:`reset_process_peak`, or from the start of the process where there is no such thing.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    statm = Path("/proc/self/statm")
    resident = int(statm.read_text().split()[1]) * page if statm.exists() else None
    # ru_maxrss is in KiB on Linux and in bytes on macOS (getrusage(2)).
    peak_unit = 1 if sys.platform == "darwin" else 1024
    peak = _high_water_mark() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * peak_unit
    total = os.sysconf("SC_PHYS_PAGES") * page
    return resident, peak, total if total > 0 else None


def reset_process_peak() -> None:
    """Start a new measurement of the most memory held, where the kernel offers that (Linux)."""
    with suppress(OSError):
        _RESET.write_text(_RESET_PEAK)


def processor() -> str:
    """The model of this machine's processor, as well as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads spin only for a moment while they wait for each other, then sleep.

    GNU's spin for long, which on a machine that does anything else makes a step fifty times slower,
    and measured speed-ups wrong (docs/speed.md has the choice). To be called before torch is
    loaded; the user's own setting wins.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment):
        environment["GOMP_SPINCOUNT"] = str(SPINS)


@contextmanager
def importing() -> Iterator[None]:
    """For imports of torch and what stands on it: without looking for garbage meanwhile.

    What importing makes lives on; looking through it again and again took a fifth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def keep_output_harmless() -> None:
    """Let no output fail a process: for entry points, before anything is printed.

    A closed stream becomes the null device, and what an encoding cannot say is escaped.
    """
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell; processes that we start inherit what is there
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            setattr(sys, name, os.fdopen(descriptor, "w", closefd=False))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _high_water_mark() -> int | None:
    """The most resident memory, in bytes; None where the kernel does not say."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def impossible_device(name: str) -> str | None:
    """Why the packages installed here can certainly not use a device; None: perhaps they can.

    Loading torch to find out takes seconds; the workers do, and say it then.
    """
    if name == "npu" and importlib.util.find_spec("torch_npu") is None:
        return "torch_npu is not installed (pip install 'osp-opt[npu]')"
    if name == "cuda":
        torch = importlib.util.find_spec("torch")
        version = Path(torch.origin).with_name("version.py") if torch and torch.origin else None
        text = version.read_text() if version is not None and version.is_file() else ""
        if re.search(r"^cuda\b.*= None$", text, re.MULTILINE):
            return "this torch was built without CUDA"
    return None
