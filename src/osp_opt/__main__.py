"""``python -m osp_opt`` and the console script."""

from __future__ import annotations

import os
import sys

INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, as shells have it


def run() -> None:
    """End the process with the command line's exit code."""
    try:
        # Not at the top: whoever presses Ctrl-C at once does it while these are loaded.
        from osp_opt.cli.app import main
        from osp_opt.system.host import keep_output_harmless, share_cores

        keep_output_harmless()
        share_cores(os.environ)
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read has seen enough; the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except KeyboardInterrupt:
        os.write(2, b"osp-opt: stopped\n")
        code = INTERRUPTED_EXIT_CODE
    sys.exit(code)


if __name__ == "__main__":
    run()
