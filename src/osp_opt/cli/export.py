"""``osp-opt export``: what was found, for another runtime, on the terminal or in a file."""

from __future__ import annotations

import os
from pathlib import Path

from osp_opt.base.artifacts import PROVENANCE, atomic_write_bytes, check_place, meta_path
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
    if options.out is not None:
        _check_out(options.out, options.file)
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


def _check_out(out: Path, file: Path) -> None:
    """Refuse to write over what is exported, or over another result and its provenance."""
    check_place(out, "--out")
    if out.name.endswith(PROVENANCE):
        raise OptionError(f"--out {out}: a name for provenance; give another one")
    if os.path.exists(out) and os.path.exists(file) and os.path.samefile(out, file):
        raise OptionError(f"--out {out}: is the file to export; give another name")
    if os.path.lexists(meta_path(out)):
        raise OptionError(
            f"--out {out}: a result of osp-opt stands there with its provenance; give another name"
        )


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
