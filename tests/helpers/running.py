"""What the fixture `run_job` gives: runs a job, returns what it printed."""

from __future__ import annotations

from collections.abc import Callable

from osp_opt.options import JobOptions

Job = Callable[[JobOptions], str]
