"""Ranks: what each of two real processes gets from every primitive, and what fails how."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import Any

import dying_rank
import primitives_on_ranks
import pytest
from launching import run_ranks
from primitives_on_ranks import ITEMS

from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel
from osp_opt.system.ranks import Layout


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("primitives")
    run_ranks(primitives_on_ranks.main, 2, folder, logs=folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_items_are_dealt_out_and_come_back_in_order(both: list[dict[str, Any]]) -> None:
    assert [made["share"] for made in both] == [["a", "c", "e"], ["b", "d"]]
    for made in both:
        assert made["gather_objects"] == [{"rank": 0}, {"rank": 1}]
        assert made["gather_shared"] == ["A", "B", "C", "D", "E"]
        assert made["broadcast"] == "from 0"


def test_ranks_that_make_one_video_have_one_share(both: list[dict[str, Any]]) -> None:
    for made in both:
        assert made["together_share"] == ITEMS
        assert made["together_gather"] == [0]
        assert made["together_gather_shared"] == ["A", "B", "C", "D", "E"]
        assert made["from_ranks"] == [0, 1]
    assert [made["leader"] for made in both] == [True, False]


def test_tensors_are_sliced_gathered_and_exchanged_in_rank_order(
    both: list[dict[str, Any]],
) -> None:
    assert [made["slice"] for made in both] == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    whole = [[0, 1, 2, 3, 100, 101, 102, 103], [4, 5, 6, 7, 104, 105, 106, 107]]
    assert [made["all_gather"] for made in both] == [whole, whole]
    assert both[0]["exchange"] == [[0, 1], [4, 5], [100, 101], [104, 105]]
    assert both[1]["exchange"] == [[2, 3], [6, 7], [102, 103], [106, 107]]
    assert all(made["exchange_back"] for made in both)


def test_auto_follows_the_workload(both: list[dict[str, Any]]) -> None:
    for made in both:
        assert made["one_item"] == "dp=1,cfg=2,sp=1"
        assert made["two_items"] == "dp=2,cfg=1,sp=1"
        assert made["unguided"] == "dp=1,cfg=1,sp=2"


def test_a_layout_for_another_number_of_processes_is_refused(both: list[dict[str, Any]]) -> None:
    for made in both:
        assert "sp=3" in made["wrong_layout"]
        assert "dp=2,cfg=1,sp=1" in made["wrong_layout"]


def test_the_survivor_of_a_dead_rank_ends_with_one_clear_line(free_port: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, dying_rank.__file__],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [5, 9]
    assert re.match(r"rank 1: no sign of life for \d+ s; rank 0: gathering of results", said[0])
    assert said[0].count("\n") == 1


def test_one_process_is_the_identity() -> None:
    with Parallel.open(Device.open("cpu")) as parallel:
        assert (parallel.rank, parallel.world_size, parallel.layout) == (0, 1, Layout())
        assert parallel.share(ITEMS) == ITEMS
        assert parallel.gather_objects("x") == ["x"]
        assert parallel.gather_shared(ITEMS) == ITEMS
        assert parallel.broadcast_object("x") == "x"
        assert parallel.is_main
        assert parallel.is_leader
        parallel.barrier()
