"""ColorVideoVDP (Mantiuk et al. 2024, SIGGRAPH): how visible differences of two videos are, in JOD.

A model of human vision over space, time and colour; 10 JOD is "no difference can be seen", and at
one less three of four people see it. Its parameters come with the package `cvvdp`, which needs
another torch than is pinned here, so it runs in the Python that the user names. It is handed the
frames themselves: no codec and no ffmpeg come between.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import numpy as np

from osp_opt.base.errors import OptionError
from osp_opt.base.video import Frames

__all__ = ["Score", "color_video_vdp"]

DISPLAY = "standard_fhd"  # of the package: 24 inches, 200 cd/m2, seen from 60 cm
_SCRIPT = """
import contextlib, json, sys
import numpy
with contextlib.redirect_stdout(sys.stderr):
    import pycvvdp
    metric = pycvvdp.cvvdp(display_name=sys.argv[1])
for line in sys.stdin:
    test, reference, fps = json.loads(line)
    with contextlib.redirect_stdout(sys.stderr):
        videos = [numpy.load(path) for path in (test, reference)]
        order = "FHWC" if len(videos[0]) > 1 else "HWC"
        videos = [video if order == "FHWC" else video[0] for video in videos]
        jod, _ = metric.predict(*videos, dim_order=order, frames_per_second=fps)
    print(json.dumps(float(jod)), flush=True)
"""


Score: TypeAlias = Callable[[Frames, Frames, float], float]


@contextmanager
def color_video_vdp(python: Path) -> Iterator[Score]:
    """A process of `python` that scores pairs: JOD of (candidate, reference, frames per second),
    both uint8 [t h w c]; 10 for equal ones.

    Raises OptionError when `python` is not there, and at the first pair when it cannot do it.
    """
    if not python.is_file():
        raise OptionError(f"--cvvdp-python {python}: no such file; give the python beside cvvdp")
    # Its own environment: what makes ours find its packages must not reach it.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    command = [str(python), "-c", _SCRIPT, DISPLAY]
    with (
        tempfile.TemporaryDirectory(prefix="osp-opt-cvvdp-") as folder,
        tempfile.TemporaryFile() as log,
    ):
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=folder,
                env=environment,
                text=True,
            )
        except OSError as error:
            raise OptionError(
                f"--cvvdp-python {python}: cannot be run ({error.strerror})"
            ) from None

        def score(candidate: Frames, reference: Frames, fps: float) -> float:
            assert process.stdin is not None
            assert process.stdout is not None
            paths = [os.path.join(folder, name) for name in ("candidate.npy", "reference.npy")]
            for path, frames in zip(paths, (candidate, reference), strict=True):
                np.save(path, frames)
            try:
                process.stdin.write(json.dumps([*paths, fps]) + "\n")
                process.stdin.flush()
                return _finite(process.stdout.readline())
            except (OSError, ValueError) as error:
                process.kill()
                process.wait()
                log.seek(0)
                lines = log.read().decode(errors="replace").strip().splitlines()
                said = f"{lines[-1]:.200}" if lines else "it said nothing"
                raise OptionError(
                    f"--cvvdp-python {python}: ColorVideoVDP failed ({said})"
                ) from error

        try:
            yield score
        finally:
            process.kill()
            process.communicate()


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"JOD of {value}")
    return value
