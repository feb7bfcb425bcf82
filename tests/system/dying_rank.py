"""Run on 2 processes that torch.distributed.run does not watch: rank 1 dies in mid job."""

from __future__ import annotations

import os
import sys

from osp_opt.base.errors import WorkerError
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel


def main() -> None:
    try:
        # Left open, gloo's threads abort one process in a hundred when the interpreter ends.
        with Parallel.open(Device.open("cpu"), timeout_s=5) as parallel:
            parallel.barrier()
            if parallel.rank == 1:
                os._exit(9)
            parallel.gather_objects("mine")
    except WorkerError as error:
        print(error)
        sys.exit(5)


if __name__ == "__main__":
    main()
