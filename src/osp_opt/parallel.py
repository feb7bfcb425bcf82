"""The ranks of a job: the only place that touches ``torch.distributed``.

At world size 1 everything here is the identity and no process group is made.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from osp_opt.device import Device

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 1800.0


@dataclass(frozen=True)
class Parallel:
    """This process's place among the ranks that ``torch.distributed.run`` started."""

    rank: int
    world_size: int
    local_rank: int
    timeout_s: float = DEFAULT_TIMEOUT_S

    @classmethod
    def open(cls, device: Device, *, timeout_s: float = DEFAULT_TIMEOUT_S) -> Parallel:
        """Join the process group described by RANK, WORLD_SIZE and LOCAL_RANK, if there is one."""
        rank = int(os.environ.get("RANK", "0"))
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if world_size > 1:
            kind = device.torch_device.type
            backend = "gloo" if kind == "cpu" else f"cpu:gloo,{kind}:{device.backend}"
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        return cls(rank, world_size, local_rank, timeout_s)

    @property
    def is_main(self) -> bool:
        """Whether this rank talks to the user and writes the job's files."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """The items this rank works on: every ``world_size``-th, starting at its own place."""
        return list(items[self.rank :: self.world_size])

    def gather_objects(self, obj: T) -> list[T]:
        """Every rank's object, in rank order, on every rank (a collective: all must call)."""
        if self.world_size == 1:
            return [obj]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, obj)
        return gathered

    def broadcast_object(self, obj: T) -> T:
        """Rank 0's object on every rank."""
        if self.world_size == 1:
            return obj
        box: list[Any] = [obj]
        dist.broadcast_object_list(box, src=0)
        received: T = box[0]
        return received

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()
