"""``python -m osp_opt`` and the console script."""

from __future__ import annotations

import sys

from osp_opt.cli.app import main


def run() -> None:
    """End the process with the command line's exit code."""
    sys.exit(main())


if __name__ == "__main__":
    run()
