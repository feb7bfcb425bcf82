"""``osp-opt doctor``: what this machine offers, what a checkpoint is, what is wrong."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from osp_opt.base.terminal import make_console
from osp_opt.options import DoctorOptions

if TYPE_CHECKING:
    from osp_opt.cli.diagnosis import Section

PROBLEMS_EXIT_CODE = 2


def run(options: DoctorOptions) -> int:
    """Print one table per thing looked at and a list of problems; 0 without any, else 2."""
    console = make_console()
    with console.status("looking"):
        sections = examine(options)
    for section in sections:
        table = Table(title=escape(section.title), title_justify="left", show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in section.rows:
            table.add_row(name, escape(value))
        if section.rows:
            console.print(table)
    problems = [problem for section in sections for problem in section.problems]
    for problem in problems:
        console.print(f"[red]problem:[/] {escape(problem)}", soft_wrap=True)
    if not problems:
        console.print("[green]everything looked at works[/]")
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
    return sections if any(paths) else sections + diagnosis.bundled()
