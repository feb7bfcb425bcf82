"""Run on two ranks: every primitive of Parallel, results as JSON.

Argument: a folder for the results, one file per rank.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from osp_opt.base.errors import OptionError
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel
from osp_opt.system.ranks import Layout, Workload

ITEMS = list("abcde")


def main(out: Path) -> None:
    device = Device.open("cpu")
    parallel = Parallel.open(device, timeout_s=60)
    rank = parallel.rank
    together = parallel.with_layout(Layout(sp=2))
    group = together.sequence
    whole = torch.arange(8.0).reshape(2, 4)
    sent = whole + 100 * rank
    there = group.exchange(sent, split_dim=1, join_dim=0)
    made = {
        "share": parallel.share(ITEMS),
        "gather_objects": parallel.gather_objects({"rank": rank}),
        "gather_shared": parallel.gather_shared([x.upper() for x in parallel.share(ITEMS)]),
        "broadcast": parallel.broadcast_object(f"from {rank}"),
        "together_share": together.share(ITEMS),
        "together_gather": together.gather_objects(rank),
        "together_gather_shared": together.gather_shared([x.upper() for x in ITEMS]),
        "from_ranks": together.gather_from_ranks(rank),
        "leader": together.is_leader,
        "slice": group.slice(whole, 1).tolist(),
        "all_gather": group.all_gather(sent, 1).tolist(),
        "exchange": there.tolist(),
        "exchange_back": bool(torch.equal(group.exchange(there, split_dim=0, join_dim=1), sent)),
        "one_item": str(parallel.for_workload(Workload(4, 160, guided=True, items=1)).layout),
        "two_items": str(parallel.for_workload(Workload(4, 160, guided=True, items=2)).layout),
        "unguided": str(parallel.for_workload(Workload(4, 160, guided=False, items=1)).layout),
    }
    try:
        Parallel.open(device, layout="sp=3")
    except OptionError as error:
        made["wrong_layout"] = str(error)
    parallel.barrier()
    (out / f"{rank}.json").write_text(json.dumps(made))
    parallel.close()
    parallel.close()
