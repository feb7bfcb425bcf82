"""Gives every Python process of a launcher test a job that does what its prompt says.

Only the job is a stand-in: launcher, torch.distributed.run, worker and process group are real. Of
torch its Python for the meta device is left out, which nothing here uses: a third of its import.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import types
from typing import Any


def run(options: Any, context: Any) -> None:
    """The job: ``sample`` with an order in place of a prompt."""
    import torch

    from osp_opt.base.errors import ScheduleError

    order = options.text_prompt[0]
    rank = context.parallel.rank
    if not order.endswith("refuse"):
        (context.run_dir / f"pid-{rank}").write_text(str(os.getpid()))
    if order.startswith("greet"):
        ranks = context.parallel.gather_objects(rank)
        print(f"rank {rank} of {ranks} was here", flush=True)
        with context.progress.task("greeting", total=2) as task:
            task.advance()
            task.advance()
    if order.endswith("refuse"):
        raise ScheduleError("schedule s.txt: entry 3 is not a number")
    if order == "crash on rank 1":
        if rank == 1:
            raise ZeroDivisionError("divided by nothing")
        context.parallel.gather_objects(rank)
    elif order == "work on rank 1":
        end = time.monotonic() + 2.5 * options.timeout
        while rank == 1 and time.monotonic() < end:
            sum(range(100_000))  # milliseconds: enough of a sign of life
            time.sleep(0.05)
        print(context.parallel.gather_objects(rank), flush=True)
    elif order == "stop on rank 1":
        together = context.parallel.with_layout(
            context.parallel.requested or context.parallel.layout
        )
        if rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        together.replica.all_gather(torch.zeros(1), 0)
        together.gather_objects(rank)
    elif order == "hang on rank 1":
        if rank == 1:
            time.sleep(600)
        context.parallel.gather_objects(rank)
    elif order == "die on rank 1":
        context.parallel.barrier()
        if rank == 1:
            os.kill(os.getpid(), 9)
        context.parallel.gather_objects(rank)
    elif order == "use up the memory":
        torch.empty(2**60, dtype=torch.uint8)
    elif order == "fill the disk":
        import resource

        from osp_opt.base.artifacts import write_json

        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # as far as a process can tell
        write_json(context.run_dir / "manifest.json", {"videos": []})
    elif order == "leave":
        os._exit(0)
    elif order == "die":
        os.kill(os.getpid(), 9)
    elif order == "\u7403":
        for number in range(2000):
            context.progress.say(f"{number} {order}")
    elif order == "sleep":
        print("asleep", flush=True)
        time.sleep(600)


sys.modules["torch._meta_registrations"] = types.ModuleType("torch._meta_registrations")
job = types.ModuleType("osp_opt.generate.job")
vars(job)["run"] = run
sys.modules["osp_opt.generate.job"] = job
