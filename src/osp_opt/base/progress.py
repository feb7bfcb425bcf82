"""Progress on the terminal: rich bars there, plain lines elsewhere, silence off rank 0."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from osp_opt.base.terminal import make_console, visible

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

PLAIN_INTERVAL_S = 10.0
"""Plain lines of one task are at least this far apart."""


class Task:
    """One bar (or one series of lines): ``total`` units of work. Use as a context manager."""

    def __init__(self, progress: Progress, description: str, total: int) -> None:
        self.description = description
        self.total = total
        self.completed = 0
        self._progress = progress
        self._started = self._shown = time.monotonic()
        self._bar: TaskID | None = None

    def __enter__(self) -> Task:
        self._bar = self._progress._begin(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress._end(self, finished=kind is None)

    def advance(self, amount: int = 1, description: str | None = None) -> None:
        """``amount`` more units are done; ``description`` replaces the text."""
        self.completed += amount
        if description is not None:
            self.description = description
        self._progress._update(self)

    def _line(self) -> str:
        elapsed = time.monotonic() - self._started
        text = f"{self.description}: {self.completed}/{self.total}, {elapsed:.0f} s"
        if 0 < self.completed < self.total:
            text += f", {elapsed / self.completed * (self.total - self.completed):.0f} s left"
        return text

    def _due(self) -> bool:
        """Whether a plain line is due now, and if so, count it as shown."""
        now = time.monotonic()
        due = now - self._shown >= PLAIN_INTERVAL_S
        if due:
            self._shown = now
        return due


class Progress:
    """Where a job tells the user how it goes. Only rank 0 speaks."""

    def __init__(self, rank: int = 0, *, interactive: bool | None = None) -> None:
        self._speaks = rank == 0
        wanted = sys.stdout.isatty() if interactive is None else interactive
        self._interactive = self._speaks and wanted
        self._display: RichProgress | None = None
        self._open = 0

    def task(self, description: str, total: int) -> Task:
        """A task of ``total`` units; tasks may be nested."""
        return Task(self, description, total)

    def say(self, text: str) -> None:
        """Print a line (above the bars, when there are any)."""
        if not self._speaks:
            return
        text = visible(text)
        try:
            if self._display is None:
                print(text, flush=True)
            else:
                self._display.console.print(text, markup=False, highlight=False, soft_wrap=True)
        except OSError:  # nobody reads any more: a job goes on without words
            self._speaks = False

    def _begin(self, task: Task) -> TaskID | None:
        if not self._interactive:
            self.say(f"{task.description} ({task.total})")
            return None
        if self._display is None:
            self._display = _make_display()
            self._display.start()
        self._open += 1
        return self._display.add_task(task.description, total=task.total)

    def _update(self, task: Task) -> None:
        if self._display is not None and task._bar is not None:
            self._display.update(task._bar, completed=task.completed, description=task.description)
        elif self._speaks and task.completed < task.total and task._due():
            self.say(task._line())

    def _end(self, task: Task, *, finished: bool) -> None:
        if self._display is None or task._bar is None:
            if finished:
                self.say(task._line())
            return
        self._display.remove_task(task._bar)
        self._open -= 1
        if finished:
            self.say(task._line())
        if self._open == 0:
            self._display.stop()
            self._display = None


def _make_display() -> RichProgress:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=make_console(),
        transient=True,
    )
