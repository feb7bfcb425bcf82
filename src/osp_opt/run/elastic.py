"""torch.distributed.run, called so that the launcher hears which worker ended how.

Runs in a process between the launcher and the workers (:mod:`osp_opt.run.launch` starts it).
"""

from __future__ import annotations

import sys

from torch.distributed import DistNetworkError, DistStoreError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import parse_args
from torch.distributed.run import run as torch_run

from osp_opt.run.failures import tell

__all__ = ["run"]


def run() -> None:
    """Run the workers that the process's arguments describe, in the words of torch.distributed.run,
    and end the process, with exit code 1 when one failed.
    """
    try:
        torch_run(parse_args(sys.argv[1:]))  # type: ignore[no-untyped-call]
    except (RendezvousError, DistStoreError, DistNetworkError):
        tell(sys.stderr.fileno(), "unmet")
        raise
    except ChildFailedError as error:
        for rank, failure in error.failures.items():
            tell(sys.stderr.fileno(), "death", rank=rank, code=failure.exitcode)
        sys.exit(1)
