"""``osp-opt export``: what was found, for another runtime, on the terminal or in a file."""

from __future__ import annotations

import os

from osp_opt.base.artifacts import atomic_write_bytes
from osp_opt.base.errors import OptionError
from osp_opt.base.terminal import note, visible
from osp_opt.export.targets import Exported, export
from osp_opt.options import ExportOptions


def run(options: ExportOptions) -> int:
    """Write the export to ``--out`` or to stdout; what to know about it goes to stderr."""
    if options.file is None:
        raise OptionError(
            "FILE is missing: give a schedule, a cache policy or the folder of a calibration"
        )
    made = export(options.file, options)
    content = _form(made, options)
    for line in made.notes:
        note(line)
    if options.out is None:
        print(content.decode(), end="")
    else:
        atomic_write_bytes(options.out, content)
        print(visible(f"written: {options.out}"))
    return 0


def _form(made: Exported, options: ExportOptions) -> bytes:
    """The form that the suffix of --out asks for, or the one to paste."""
    suffixes = list(made.forms)
    if options.out is None:
        form = made.forms[suffixes[0]]
        if isinstance(form, bytes):
            raise OptionError(f"--to {options.to} writes a file: give --out FILE{suffixes[0]}")
        return form.encode()
    if os.path.isdir(options.out) or options.out.suffix not in suffixes:
        raise OptionError(
            f"--out {options.out}: must be a file that ends in {' or '.join(suffixes)}"
        )
    form = made.forms[options.out.suffix]
    return form if isinstance(form, bytes) else form.encode()
