"""``osp-opt doctor``: what this machine offers, what a checkpoint is, what is wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from osp_opt.base.progress import Progress
from osp_opt.options import DoctorOptions, following

if TYPE_CHECKING:
    from osp_opt.cli.diagnosis import Section

PROBLEMS_EXIT_CODE = 2


def run(options: DoctorOptions) -> int:
    """Tell what was found, thing by thing, and what is wrong; 0 when nothing is, else 2."""
    with Progress(verbosity=options.verbosity) as progress:
        sections = examine(options)
        for section in sections:
            progress.say(section.title)
            width = max((len(name) for name, _ in section.rows), default=0)
            for name, value in section.rows:  # as it is: a terminal that folds lines keeps paths
                progress.say(f"  {name:{width}}  {value}")
        problems = [problem for section in sections for problem in section.problems]
        progress.result(
            [f"problem: {problem}" for problem in problems] or ["everything looked at works"],
            {"found": {s.title: dict(s.rows) for s in sections}, "problems": problems},
            "" if problems else following(options, "calibrate"),
        )
    return PROBLEMS_EXIT_CODE if problems else 0


def examine(options: DoctorOptions) -> list[Section]:
    """Look at the machine and at the models that ``options`` name (else at the bundled one)."""
    # Where torch_npu is installed without CANN, torch does not import with this switched on; to
    # say so is what doctor is for.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    from osp_opt.system.device import settle_torch_npu  # imports torch, which --help must not

    settle_torch_npu()
    from osp_opt.base.shape import VideoShape
    from osp_opt.cli import diagnosis

    sections = [
        diagnosis.machine(),
        diagnosis.devices(options.device, options.dtype, options.attention),
    ]
    paths = [options.model_path, options.ae_path, options.text_encoder_name]
    if options.model_path is not None and options.version is not None:
        paths[0] = f"{options.model_path.rstrip('/')}/{options.version}"
    size = (options.num_frames, options.height, options.width)
    asked = VideoShape(*size) if None not in size else None  # type: ignore[arg-type]
    for path in filter(None, paths):
        sections += diagnosis.models(path, asked, options.allow_untrained_shape)
    if options.pipeline is not None:
        sections.append(diagnosis.pipeline(options))
    return sections if any((*paths, options.pipeline)) else sections + diagnosis.bundled()
