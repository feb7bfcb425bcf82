"""Make a folder in which a torch_npu of some condition is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TIMEOUT_S = 300
STAND_IN = (Path(__file__).parent / "stand_in.py").read_text()
CONDITIONS = {
    "working": STAND_IN,
    # What the real 2.13.0 says, word for word, where there is no CANN.
    "no CANN": "raise ImportError('libhccl.so: cannot open shared object file: "
    "No such file or directory')",
    # The real one's check, in a torch built with CUDA: several lines.
    "two accelerators": "raise RuntimeError('Two accelerators cannot be used at the same time in "
    "PyTorch: npu and cuda.\\n[ERROR] ERR00007')",
    "lacks a package": "import a_package_that_nobody_has",
}


def install(folder: Path, condition: str) -> Path:
    """Put torch_npu, with metadata and torch's autoload entry point, into ``folder``."""
    package, metadata = folder / "torch_npu", folder / "torch_npu-2.13.0.dist-info"
    package.mkdir(parents=True)
    metadata.mkdir()
    (package / "__init__.py").write_text(CONDITIONS[condition])
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 2.13.0\n")
    (metadata / "entry_points.txt").write_text(
        "[torch.backends]\ntorch_npu = torch_npu:_autoload\n"
    )
    return folder


def run_with(
    folder: Path, *arguments: object, autoload: str | None = "0", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python on ``arguments`` with the packages of ``folder`` first on its path.

    ``autoload`` is TORCH_DEVICE_BACKEND_AUTOLOAD, not set where None.
    """
    switch = {} if autoload is None else {"TORCH_DEVICE_BACKEND_AUTOLOAD": autoload}
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={
            **{name: value for name, value in os.environ.items() if "VISIBLE" not in name},
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": path,
            **switch,
            **environment,
        },
    )
