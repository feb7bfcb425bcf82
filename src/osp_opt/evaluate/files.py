"""What `evaluate` reads and writes (no torch)."""

from __future__ import annotations

from osp_opt.base.artifacts import check_place
from osp_opt.base.errors import OptionError
from osp_opt.base.ffmpeg import check_ffmpeg
from osp_opt.generate.manifest import Take, open_take
from osp_opt.options import EvaluateOptions

__all__ = ["EVALUATION_FORMAT", "open_takes"]

EVALUATION_FORMAT = "osp-opt/evaluation/1"


def open_takes(options: EvaluateOptions) -> tuple[Take, Take]:
    """The videos to compare with, and those that are compared.

    Raises InputError for folders without, and where the result cannot be written.
    """
    if options.reference is None:
        raise OptionError("--reference: missing; give the folder of the videos to compare with")
    check_place(options.json_path, "--out" if options.out else "--workdir")
    check_ffmpeg()
    reference = open_take(options.reference, "--reference")
    candidate = options.candidate or options.workdir / "samples"
    return reference, open_take(candidate, "--candidate", reference)
