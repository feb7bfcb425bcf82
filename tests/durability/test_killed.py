"""SIGKILL at any moment, then the same command again: as if nothing had happened.

In the normal run each command is killed at a random one of its changes of files in every third of
the job. `make durability` also kills each at 20 random moments of the clock.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Exited, Options, Server
from tiny_jobs import job

from osp_opt.base.ledger import TrialLedger
from osp_opt.base.progress import Progress
from osp_opt.calibration import Calibration
from osp_opt.calibration.source import open_source
from osp_opt.generate.memory import MEMORY_FILE
from osp_opt.options import SearchCacheOptions
from osp_opt.run.folder import LOCK_FILE, results_folder
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.cache.block_times import BlockTimes
from osp_opt.search.cache.candidates import largest_ratio
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel

COMMANDS = ("calibrate", "search-steps", "search-cache", "sample", "evaluate")
THIRDS = 3
MOMENTS = int(os.environ.get("OSP_OPT_KILLS", "0"))
LEDGER = "trials.jsonl"
CLOCK = ("seconds", "speedups", "denoising_seconds", "recorded_in_seconds", "speedup")
TIMES = BlockTimes((1.0, 1.0, 1.0, 1.0), 0.01, 0.01)


class Jobs:
    """One working folder in which every command has run to its end."""

    def __init__(self, workdir: Path, flags: dict[str, Any], server: Server) -> None:
        self.workdir = workdir
        self.flags = flags
        self.server = server
        self.ended: dict[str, Exited] = {}
        self.result: dict[str, dict[str, Any]] = {}
        workdir.mkdir()  # whose making counts as a change, in the first run only
        for command in COMMANDS:
            self.prepare(command)
            self.ended[command] = self.complete(command)
            self.result[command] = contents(self.folder(command))

    def options(self, command: str) -> Options:
        made: Options = job(command, self.flags, self.workdir)
        if isinstance(made, SearchCacheOptions):
            # What the clock can never deliver, so that no decision depends on it.
            ratio = 0.999 * largest_ratio(TIMES, made.steps)[0]
            made = made.model_copy(update={"ratio": ratio})
        return made

    def folder(self, command: str) -> Path:
        return results_folder(self.options(command))

    def prepare(self, command: str) -> None:
        """Remove what the command made; what search-cache would time first is given."""
        shutil.rmtree(self.folder(command), ignore_errors=True)
        options = self.options(command)
        if isinstance(options, SearchCacheOptions):
            context = WorkerContext(Device.open("cpu"), Parallel(), options.run_dir, Progress(1))
            maker = open_source(options, context).maker()
            about = {"of": maker.digest(TimestepSchedule.uniform(options.steps))}
            ledger = TrialLedger(options.run_dir / LEDGER)
            for what in ("block times", "block times with guidance"):
                key = {"what": what, **about, "timed_on": maker.timed_on}
                ledger.add(key, TIMES.as_json())

    def complete(self, command: str) -> Exited:
        ended = self.server.run(self.options(command))
        assert ended.code == 0, ended
        return ended


@pytest.fixture(scope="module")
def jobs(server: Server, flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    return Jobs(tmp_path_factory.mktemp("killed") / "work", flags, server)


def contents(folder: Path) -> dict[str, Any]:
    """What a command left: bytes, or JSON values without what a clock said."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        aside = path.parent.name == "logs" or path.name in (LOCK_FILE, MEMORY_FILE)
        if path.is_file() and not aside and path.suffix != ".lock":
            found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [_timeless({k: v for k, v in line.items() if k != "check"}) for line in lines]
    if path.parent.name == "statistics":
        return _statistics(path)
    return path.read_bytes()


def _statistics(path: Path) -> list[Any]:
    found = Calibration.load(path)
    arrays = (found.step_gram, found.block_gram, found.guided_block_gram)
    return [found.prompts, found.seeds, found.metadata, *(array.tobytes() for array in arrays)]


def _timeless(value: Any) -> Any:
    if isinstance(value, list):
        return [_timeless(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {name: _timeless(item) for name, item in value.items() if name not in CLOCK}


def finished(folder: Path) -> Iterator[Path]:
    """The files that a resumed run has to leave as they are."""
    # A name that begins with a dot is a file that was being written.
    yield from folder.glob("baseline/[!.]*.safetensors")
    for statistics in folder.glob("statistics/[!.]*.safetensors"):
        yield from (statistics, folder / "latents" / statistics.name)
        # Written last: where it is missing, it is decoded from the latents.
        yield from folder.glob(f"videos/{statistics.stem}.mp4")
    for sidecar in folder.glob("*.mp4.meta.json"):
        yield from (sidecar, folder / sidecar.name.removesuffix(".meta.json"))


def whole_lines(folder: Path) -> bytes:
    ledger = folder / LEDGER
    data = ledger.read_bytes() if ledger.exists() else b""
    return data[: data.rfind(b"\n") + 1]


def assert_no_orphans(workdir: Path) -> None:
    """Nothing that was started for the job may live on; the deadline only bounds a failure."""
    deadline = time.monotonic() + 60
    while found := [path for path in Path("/proc").glob("[0-9]*/cmdline") if _names(path, workdir)]:
        assert time.monotonic() < deadline, f"orphans: {found}"
        time.sleep(0.05)


def _names(path: Path, workdir: Path) -> bool:
    try:
        return os.fsencode(workdir) in path.read_bytes()
    except OSError:  # it has ended meanwhile
        return False


def kill_and_go_on(jobs: Jobs, command: str, kill: Callable[[Options], Exited]) -> Exited:
    """Kill `command` in mid job, run it again, and compare with the run that was let alone."""
    jobs.prepare(command)
    folder = jobs.folder(command)
    ended = kill(jobs.options(command))
    assert_no_orphans(jobs.workdir)
    kept = {path: path.stat().st_mtime_ns for path in finished(folder)}
    ledger = whole_lines(folder)
    jobs.complete(command)
    assert contents(folder) == jobs.result[command]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "made again"
    assert whole_lines(folder).startswith(ledger), "measured again"
    return ended


@pytest.mark.parametrize("third", range(THIRDS))
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_a_change_of_files(jobs: Jobs, command: str, third: int) -> None:
    changes = jobs.ended[command].changes
    assert changes >= THIRDS
    first, end = changes * third // THIRDS, changes * (third + 1) // THIRDS
    moment = random.Random(f"{command} {third}").randrange(first, end) + 1
    ended = kill_and_go_on(jobs, command, lambda o: jobs.server.run(o, at_change=moment))
    assert ended.code == -9


def test_killed_while_blocks_are_timed(jobs: Jobs, tmp_path: Path) -> None:
    """Nothing is written while they are, so the last moment before the ledger stands for all."""
    workdir = tmp_path / "work"
    shutil.copytree(jobs.folder("calibrate"), workdir / "calibration")
    options = job("search-cache", jobs.flags, workdir).model_copy(update={"ratio": 1.1})
    assert jobs.server.run(options, at_change=LEDGER).code == -9
    assert not (options.run_dir / LEDGER).exists()
    assert jobs.server.run(options).code == 0
    made = contents(options.run_dir)
    assert made[LEDGER][0]["key"]["what"] == "block times with guidance"
    assert jobs.server.run(options).code == 0
    assert contents(options.run_dir) == made


@pytest.mark.skipif(MOMENTS == 0, reason="make durability")
@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_a_random_moment(jobs: Jobs, command: str, moment: int) -> None:
    after_s = random.Random(f"{command} {moment}").random() * jobs.ended[command].seconds
    kill_and_go_on(jobs, command, lambda options: jobs.server.run(options, after_s=after_s))
