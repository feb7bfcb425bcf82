"""The resume ledger, and the generators of the searches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from osp_opt.base.errors import FileError
from osp_opt.base.ledger import TrialLedger


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "trials.jsonl"


def test_what_was_added_is_there_after_reopening(path: Path) -> None:
    ledger = TrialLedger(path)
    assert ledger.get("a") is None
    assert len(ledger) == 0
    ledger.add("a", {"mse": 0.1})
    ledger.add("b", {"mse": 0.2, "psnr": [1.0, 2.0]})
    ledger.add("a", {"mse": 0.3})
    again = TrialLedger(path)
    assert again.get("a") == ledger.get("a") == {"mse": 0.3}
    assert again.keys() == ["a", "b"]


def test_any_torn_tail_is_dropped_and_overwritten(path: Path) -> None:
    ledger = TrialLedger(path)
    ledger.add("a", {"x": 1})
    whole = path.stat().st_size
    ledger.add("b", {"x": 2, "text": "ä"})
    data = path.read_bytes()
    for cut in range(whole, len(data)):
        path.write_bytes(data[:cut])
        torn = TrialLedger(path)
        assert torn.keys() == ["a"]
        torn.add("c", {"x": 3})
        assert TrialLedger(path).keys() == ["a", "c"]


def test_damage_in_the_middle_is_an_error_naming_the_line(path: Path) -> None:
    ledger = TrialLedger(path)
    for key in "abc":
        ledger.add(key, {"x": 1})
    lines = path.read_bytes().split(b"\n")
    for bad in (b"{]", b"[1]", b'{"key": "b"}', b'{"key": "b", "values": 3}', b""):
        path.write_bytes(b"\n".join([lines[0], bad, *lines[2:]]))
        with pytest.raises(FileError, match="line 2"):
            TrialLedger(path)


def test_numbers_that_json_cannot_hold_are_refused(path: Path) -> None:
    ledger = TrialLedger(path)
    with pytest.raises(ValueError, match="JSON compliant"):
        ledger.add("a", {"x": float("nan")})
    assert ledger.get("a") is None
    assert not path.exists()


def test_unwritable_place_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot be written"):
        TrialLedger(tmp_path / "file" / "trials.jsonl").add("a", {"x": 1})


def test_a_killed_process_loses_at_most_the_line_it_was_writing(path: Path) -> None:
    script = (
        "import itertools, sys\nfrom osp_opt.base.ledger import TrialLedger\n"
        "ledger = TrialLedger(sys.argv[1])\n"
        "for i in itertools.count(len(ledger)):\n"
        "    ledger.add(str(i), {'i': i})\n    print(i, flush=True)\n"
    )
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        reported = [int(child.stdout.readline()) for _ in range(20)]
        os.kill(child.pid, signal.SIGKILL)
        reported += [int(line) for line in child.stdout.read().splitlines()]
        child.wait()
        keys = TrialLedger(path).keys()
        assert keys == [str(i) for i in range(len(keys))]
        assert reported[-1] < len(keys) <= reported[-1] + 2
