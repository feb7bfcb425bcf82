"""Whole commands in this process, and working folders whose files tests may damage."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from folders import clips, noisy, sampled, searches

from osp_opt.base.errors import OspOptError
from osp_opt.base.progress import Progress
from osp_opt.cli.app import main
from osp_opt.options import JobOptions
from osp_opt.run.checks import check_before_launch, with_predecessors
from osp_opt.run.folder import load_run, open_run
from osp_opt.run.worker import JOBS
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def is_clean(self) -> bool:
        """Done, or refused in one line; with nothing that a terminal would obey."""
        lines = [line for line in self.err.splitlines() if line.startswith("osp-opt: ")]
        harmless = all(char.isprintable() or char == "\n" for char in self.out + "".join(lines))
        refused = [line for line in self.err.splitlines() if "osp-opt: error:" in line]
        return harmless and self.code in (0, 2, 3, 4) and len(refused) == (self.code == 2)


def run(*argv: str | Path) -> Outcome:
    """A command that starts no processes: evaluate, report, doctor."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(arg) for arg in argv])
    return Outcome(code, out.getvalue(), err.getvalue())


def run_job(options: JobOptions) -> Outcome:
    """What the launcher checks, then the job as its only worker would do it."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            options, _ = with_predecessors(options)
            check_before_launch(options)
            with open_run(options) as opened:
                read = load_run(opened.folder / "options.json")
                device = Device.open("cpu")
                context = WorkerContext(device, Parallel.open(device), read.folder, Progress(0))
                JOBS[options.command]()(read.options, context)
        except OspOptError as error:
            print(f"osp-opt: error: {' '.join(str(error).split())}", file=err)
            return Outcome(error.exit_code, out.getvalue(), err.getvalue())
    return Outcome(0, out.getvalue(), err.getvalue())


def working_folder(place: Path) -> Path:
    """What calibrate, both searches, two samples and an evaluation leave."""
    policy = searches(place)
    made = clips()
    sampled(place / "baseline", made, seconds=6.0)
    faster = [noisy(made[0], 5), *made[1:]]
    sampled(place / "faster", faster, seconds=4.0, cache=policy.to_json())
    done = run(
        *("evaluate", "--reference", place / "baseline", "--candidate", place / "faster"),
        *("--workdir", place, "--no-lpips", "--max-loss", "90%"),
    )
    assert done.code in (0, 3, 4), done.err
    (place / "search-steps" / "options.json").write_text(json.dumps({"command": "search-steps"}))
    return place
