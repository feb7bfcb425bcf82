"""The ranks of a job: the only place that touches ``torch.distributed``.

At world size 1 everything here is the identity and no process group is made. With more ranks
(started by ``torch.distributed.run``) they are laid out as `ranks.py` says. Every method marked
*collective* must be called by all ranks concerned, in the same order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import TracebackType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from osp_opt.base.errors import WorkerError, first_line
from osp_opt.system.device import Device
from osp_opt.system.heartbeat import Heartbeat, Meetings, Silence
from osp_opt.system.ranks import Layout, Workload, auto_layout, check_layout, parse_layout

T = TypeVar("T")

DEFAULT_TIMEOUT_S = 1800.0
"""Longest wait for a rank that gives no sign of life; one that works is waited for."""
_SUSPICIOUS = 0.2  # of the timeout: so long silent, a rank is why tensors did not arrive in time


@dataclass(frozen=True)
class RankGroup:
    """Some ranks that exchange tensors; of size 1 it is the identity."""

    rank: int = 0
    size: int = 1
    handle: dist.ProcessGroup | None = None
    ranks: tuple[int, ...] = (0,)
    heartbeat: Heartbeat | None = None

    def slice(self, x: Tensor, dim: int) -> Tensor:
        """This rank's part of ``x``, whose length along ``dim`` must divide by ``size``."""
        return x.chunk(self.size, dim)[self.rank]

    def all_gather(self, x: Tensor, dim: int) -> Tensor:
        """The ranks' tensors of one shape, joined along ``dim`` in rank order (collective)."""
        if self.size == 1:
            return x
        return torch.cat(self._gather(x.contiguous()), dim)

    def exchange(self, x: Tensor, split_dim: int, join_dim: int) -> Tensor:
        """All-to-all: part r of ``x`` along ``split_dim`` goes to rank r (collective).

        What arrives is joined along ``join_dim`` in rank order, so ``exchange(y, j, s)`` undoes
        ``y = exchange(x, s, j)``.
        """
        if self.size == 1:
            return x
        parts = torch.stack(x.chunk(self.size, split_dim))
        arrived = torch.empty_like(parts)
        with self._talking("exchange of tensors"):
            dist.all_to_all_single(arrived, parts, group=self.handle)
        return torch.cat(arrived.unbind(0), join_dim)

    def gather_lists(self, tensors: Sequence[Tensor], like: Tensor) -> list[list[Tensor]]:
        """Every rank's tensors: any number, any shapes, device and dtype of ``like``.

        Collective. Rank r's are element r of the result.
        """
        if self.size == 1:
            return [list(tensors)]
        shapes: list[Any] = [None] * self.size
        with self._talking("gathering of shapes"):
            dist.all_gather_object(shapes, [tuple(each.shape) for each in tensors], self.handle)
        counts = [[math.prod(shape) for shape in each] for each in shapes]
        # Only tensors of one length can be gathered, so all are laid end to end and padded.
        longest = max(sum(each) for each in counts)
        mine = [each.flatten() for each in tensors]
        flat = torch.cat([*mine, like.new_zeros(longest - sum(counts[self.rank]))])
        return [
            [
                part.view(shape)
                for part, shape in zip(torch.split(whole[: sum(sizes)], sizes), form, strict=True)
            ]
            for whole, sizes, form in zip(self._gather(flat), counts, shapes, strict=True)
        ]

    def _gather(self, x: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(x) for _ in range(self.size)]
        with self._talking("gathering of tensors"):
            dist.all_gather(gathered, x, group=self.handle)
        return gathered

    def _talking(self, what: str) -> AbstractContextManager[None]:
        return _named_failure(what, self.heartbeat, self.ranks)


Groups = tuple[RankGroup, RankGroup, RankGroup]  # sequence, cfg, replica
ALONE = RankGroup()
ONE_RANK = Layout()


@dataclass(frozen=True)
class Parallel:
    """This process's place among the ranks.

    ``sequence`` are the ranks that share its video's tokens, ``cfg`` those that hold the other
    guidance branch, ``replica`` all that make the same video.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    layout: Layout = ONE_RANK
    sequence: RankGroup = ALONE
    cfg: RankGroup = ALONE
    replica: RankGroup = ALONE
    timeout_s: float = DEFAULT_TIMEOUT_S
    requested: Layout | None = None
    control: dist.ProcessGroup | None = None
    heartbeat: Heartbeat | None = None
    meetings: Meetings | None = None
    formed: dict[Layout, Groups] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(
        cls, device: Device, *, layout: str = "auto", timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Parallel:
        """Join the job that RANK, WORLD_SIZE and LOCAL_RANK describe (none set: alone).

        Args:
            device: whose tensors the ranks exchange.
            layout: ``auto`` or ``dp=..,cfg=..,sp=..``. ``auto`` spreads independent work over all
                ranks until :meth:`for_workload` knows better.
            timeout_s: seconds without a sign of life after which a rank is given up.

        Raises:
            OptionError: the layout does not make this number of ranks.
            WorkerError: the other ranks could not be reached in time.
        """
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        requested = parse_layout(layout, world_size)
        alone = cls(
            rank=int(os.environ.get("RANK", "0")),
            world_size=world_size,
            local_rank=int(os.environ.get("LOCAL_RANK", "0")),
            timeout_s=timeout_s,
            requested=requested,
        )
        if world_size == 1:
            return alone
        kind = device.torch_device.type
        timeout = timedelta(seconds=timeout_s)
        try:
            with _named_failure("meeting of the processes"):
                store, rank, _ = next(rendezvous("env://", timeout=timeout))
                store.set_timeout(timeout)
                beats, own = (PrefixStore("osp-opt", each) for each in (store.clone(), store))
                heartbeat = Heartbeat(beats, rank, world_size, timeout_s)
                meetings = Meetings(own, rank, world_size, heartbeat)
                # Python objects and barriers stay on the host: no device memory.
                backend = device.backend if kind == "cpu" else f"cpu:gloo,{kind}:{device.backend}"
                dist.init_process_group(
                    backend, store=store, rank=rank, world_size=world_size, timeout=timeout
                )
                control = dist.group.WORLD
                if kind != "cpu":
                    control = dist.new_group(backend="gloo", timeout=timeout)
                heartbeat.start()
            alone = replace(alone, control=control, heartbeat=heartbeat, meetings=meetings)
            return alone.with_layout(requested or Layout(dp=world_size))
        except WorkerError:
            alone.close()
            raise

    def with_layout(self, layout: Layout) -> Parallel:
        """The same ranks in another layout (collective over all ranks)."""
        if self.world_size == 1:
            return self
        if layout not in self.formed:  # once: a search goes back and forth between a few layouts
            self._meet("forming of groups")
            self.formed[layout] = (
                self._group(layout.sequence_groups()),
                self._group(layout.cfg_groups()),
                self._group(layout.replica_groups()),
            )
        sequence, cfg, replica = self.formed[layout]
        return replace(self, layout=layout, sequence=sequence, cfg=cfg, replica=replica)

    def for_workload(self, workload: Workload) -> Parallel:
        """The layout for ``workload``: the one asked for, else the best (collective).

        Raises OptionError when the one asked for cannot run it, naming those that can.
        """
        if self.requested is not None:
            check_layout(self.requested, workload)
            return self
        return self.with_layout(auto_layout(self.world_size, workload))

    @property
    def is_main(self) -> bool:
        """Whether this rank talks to the user and writes the job's files."""
        return self.rank == 0

    @property
    def is_leader(self) -> bool:
        """Whether this rank speaks for its replica (the ranks that make one video together)."""
        return self.rank % self.layout.replica_size == 0

    @property
    def data_rank(self) -> int:
        """Which replica this rank belongs to."""
        return self.layout.place(self.rank)[0]

    def share(self, items: Sequence[T]) -> list[T]:
        """The items of this rank's replica: every ``dp``-th, from its own place on."""
        return list(items[self.data_rank :: self.layout.dp])

    def gather_objects(self, obj: T) -> list[T]:
        """One object per replica (its leader's), in data order, on every rank (collective)."""
        return self.gather_from_ranks(obj)[:: self.layout.replica_size]

    def gather_shared(self, results: Sequence[T]) -> list[T]:
        """What the replicas made of their :meth:`share`, in the order of the items (collective)."""
        lists = self.gather_objects(list(results))
        total = sum(len(each) for each in lists)
        return [lists[index % self.layout.dp][index // self.layout.dp] for index in range(total)]

    def gather_from_ranks(self, obj: T) -> list[T]:
        """Every rank's object, in rank order, on every rank (collective)."""
        if self.world_size == 1:
            return [obj]
        gathered: list[Any] = [None] * self.world_size
        with self._talking("gathering of results"):
            dist.all_gather_object(gathered, obj, group=self.control)
        return gathered

    def broadcast_object(self, obj: T) -> T:
        """Rank 0's object on every rank (collective)."""
        if self.world_size == 1:
            return obj
        box: list[Any] = [obj]
        with self._talking("broadcast of a decision"):
            dist.broadcast_object_list(box, src=0, group=self.control)
        received: T = box[0]
        return received

    def barrier(self) -> None:
        """Wait for all ranks (collective)."""
        if self.world_size > 1:
            self._meet("barrier")

    def close(self, failed: bool = False) -> None:
        """Leave the process groups; harmless when called twice.

        A process that ends without may abort (std::terminate): gloo's threads are still running.
        Unless it failed, rank 0, which may hold the store of all, is the last to leave.
        """
        if self.heartbeat is not None:
            if self.is_main and not failed and dist.is_initialized():
                self.heartbeat.wait_for_leaving()
            self.heartbeat.close()
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Parallel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(failed=error is not None)

    @contextmanager
    def _talking(self, what: str) -> Iterator[None]:
        """For what all ranks do together: begins when all have come, however long others work."""
        self._meet(what)
        with _named_failure(what, self.heartbeat, range(self.world_size)):
            yield

    def _meet(self, what: str) -> None:
        assert self.meetings is not None
        with _named_failure(what):
            lost = self.meetings.wait()
        if lost:
            raise _failure(what, lost)

    def _group(self, members: list[list[int]]) -> RankGroup:
        """This rank's group; every rank has to make all of them, in the same order."""
        mine = ALONE
        timeout = timedelta(seconds=self.timeout_s)
        for ranks in members:
            if len(ranks) == 1:
                continue
            with _named_failure("forming of groups", self.heartbeat, range(self.world_size)):
                handle = dist.new_group(ranks, timeout=timeout)
            if self.rank in ranks:
                place = ranks.index(self.rank)
                mine = RankGroup(place, len(ranks), handle, tuple(ranks), self.heartbeat)
        return mine


@contextmanager
def _named_failure(
    what: str, heartbeat: Heartbeat | None = None, ranks: Iterable[int] = ()
) -> Iterator[None]:
    """torch.distributed's errors say where in C++ they were raised; say what was being done, and
    who of the `ranks` that take part is silent.
    """
    try:
        with nullcontext() if heartbeat is None else heartbeat.waiting():
            yield
    except RuntimeError as error:
        lost = [] if heartbeat is None else heartbeat.lost(ranks, _SUSPICIOUS * heartbeat.timeout_s)
        raise _failure(what, lost, first_line(error)) from error


def _failure(what: str, lost: Sequence[Silence], cause: str = "") -> WorkerError:
    rank = os.environ.get("RANK", "0")
    if lost:
        told = ", ".join(map(str, lost))
        return WorkerError(f"{told}; rank {rank}: {what} failed", [each.rank for each in lost])
    return WorkerError(f"rank {rank}: {what} failed, another process has died or hangs ({cause})")
