"""``python -m osp_opt`` and the console script."""

from __future__ import annotations

import os
import sys

from osp_opt.cli.app import main
from osp_opt.system.host import keep_output_harmless, share_cores


def run() -> None:
    """End the process with the command line's exit code."""
    keep_output_harmless()
    share_cores(os.environ)
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough; the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


if __name__ == "__main__":
    run()
