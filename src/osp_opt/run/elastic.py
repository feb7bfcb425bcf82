"""torch.distributed.run, called so that the launcher hears which worker ended how.

Runs in a process between the launcher and the workers (:mod:`osp_opt.run.launch` starts it).
"""

from __future__ import annotations

import sys

from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import parse_args, run

from osp_opt.run.failures import tell

__all__ = ["main"]


def main() -> int:
    """Run the workers that the process's arguments describe, in the words of torch.distributed.run.

    The exit code is 1 when one failed.
    """
    try:
        run(parse_args(sys.argv[1:]))  # type: ignore[no-untyped-call]
    except (RendezvousError, DistStoreError, DistNetworkError):
        tell(sys.stderr.fileno(), "unmet")
        raise
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            tell(sys.stderr.fileno(), "death", rank=rank, code=failure.exitcode)
        return 1
    return 0
