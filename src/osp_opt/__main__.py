"""``python -m osp_opt`` and the console script."""

from __future__ import annotations

import os
import sys

from osp_opt.cli.app import main
from osp_opt.system.host import share_cores


def run() -> None:
    """End the process with the command line's exit code."""
    share_cores(os.environ)
    sys.exit(main())


if __name__ == "__main__":
    run()
