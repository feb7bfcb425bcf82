"""Measurements of two real processes: each made once, known to both, all in one ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import measurements_on_ranks
import pytest
from launching import run_ranks
from measurements_on_ranks import KEYS, STEPS, cost

from osp_opt.base.ledger import TrialLedger
from osp_opt.search.steps.ays import CoordinateDescent

EARLIER = {"index": 99, "rank": 7}  # of a run that was killed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("measurements")
    TrialLedger(made / "ledger.jsonl").add("c", EARLIER)
    run_ranks(measurements_on_ranks.main, 2, made, logs=made)
    return made


@pytest.fixture(scope="module")
def both(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_work_is_shared_and_everybody_knows_all_of_it(both: list[dict[str, Any]]) -> None:
    assert both[0] == both[1]
    found = dict(zip(KEYS, both[0]["found"], strict=True))
    assert found["c"] == both[0]["found"][2] == EARLIER
    assert [found[key]["rank"] for key in "abde"] == [0, 1, 0, 1]
    assert [found[key]["index"] for key in "abde"] == [0, 1, 4, 5]
    assert both[0]["again"] == both[0]["found"]
    assert both[0]["prepared"] == [[0, 1, 4, 5]], "told once, of what was not known"
    assert both[0]["recalled"] == found["b"]


def test_every_measurement_is_in_the_ledger_once(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    keys = [line["key"] for line in lines]
    assert len(set(keys)) == len(keys) > 20
    assert keys[:5] == ["c", "a", "b", "d", "e"]


def test_candidates_of_a_descent_over_ranks_give_the_schedule_of_one(
    both: list[dict[str, Any]],
) -> None:
    alone, total = CoordinateDescent(
        lambda steps: [cost(step) for step in steps], candidates=5
    ).search(STEPS)
    assert both[0]["schedule"] == list(alone.timesteps)
    assert both[0]["cost"] == pytest.approx(total)
