"""What a command tells: how far it is, details for who asks, and its result at the end.

Only rank 0 speaks. On a terminal one bar shows the stage at work and the time left; elsewhere there
are lines, at least one every half minute.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeAlias

from osp_opt.base.terminal import make_console, visible

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = ["Progress", "Task", "Verbosity"]

Verbosity: TypeAlias = Literal["quiet", "normal", "verbose", "json"]
"""quiet: warnings and the result; verbose: details, too; json: the result as JSON alone on stdout,
all else on stderr."""

PLAIN_INTERVAL_S = 15.0
"""Plain lines of one stage are at least this far apart."""
SILENCE_S = 30.0
"""Where there is no bar, something is said at least so often."""


class Task:
    """A stage of a command: ``total`` units, which make `work` of what was planned for the command.

    Use as a context manager; stages may be nested.
    """

    def __init__(self, progress: Progress, description: str, total: int, work: float) -> None:
        self.description = description
        self.total = total
        self.completed = 0
        self._progress = progress
        self._work = work
        self._started = self._shown = time.monotonic()

    def __enter__(self) -> Task:
        self._progress._begin(self)
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

    @property
    def _done(self) -> float:
        """Of the work planned for the command."""
        return self._work * self.completed / max(self.total, 1)

    def _left(self) -> float | None:
        """Seconds until the stage ends, at its pace until now."""
        if not self.completed:
            return None
        pace = (time.monotonic() - self._started) / self.completed
        return pace * max(self.total - self.completed, 0)


class Progress:
    """Where a command tells the user how it goes.

    As a context manager it breaks long silences. `values` is the result as JSON values, once there
    is one. With `verbosity` "json" ordinary lines go to stderr, unless `stdout_is_ours`: in
    a worker, whose launcher has put stdout where these lines belong.
    """

    def __init__(
        self,
        rank: int = 0,
        *,
        interactive: bool | None = None,
        verbosity: Verbosity = "normal",
        stdout_is_ours: bool = False,
    ) -> None:
        self.values: dict[str, Any] | None = None
        self.verbosity = verbosity
        self._in_worker = stdout_is_ours
        self._speaks = rank == 0
        self._wants_bar = interactive
        self._display: RichProgress | None = None
        self._tasks: list[Task] = []
        self._planned = self._done = 0.0
        self._working_since: float | None = None
        self._last_said = time.monotonic()
        self._over = threading.Event()

    def __enter__(self) -> Progress:
        if self._speaks and not self._interactive:
            threading.Thread(target=self._break_silence, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def plan(self, work: float) -> None:
        """So much work lies ahead in all stages together, in any unit that suits them all.

        The stages' `work` counts in that unit, and the time left is then the command's.
        """
        self._planned = self._done_until_now() + work

    def task(self, description: str, total: int, work: float = 0.0) -> Task:
        """A stage of ``total`` units, which make `work` of what was planned."""
        return Task(self, description, total, work)

    def say(self, text: str) -> None:
        """Print a line (above the bar, when there is one)."""
        if self.verbosity != "quiet":
            self._print(text)

    def detail(self, text: str) -> None:
        """A line for those who asked for details."""
        if self.verbosity == "verbose":
            self._print(text)

    def warn(self, text: str) -> None:
        """A line that is told however little was asked for."""
        self._print(f"warning: {text}")

    def result(self, lines: Sequence[str], values: Mapping[str, Any], following: str = "") -> None:
        """The end of the command: what came out, and the command that may follow."""
        self.values = dict(values)
        if self.verbosity == "json":
            if self._speaks and not self._in_worker:
                print(json.dumps(self.values))
            return
        for line in lines:
            self._print(line)
        if following and self.verbosity != "quiet":
            self._print(f"next: {following}")

    def left(self) -> float | None:
        """Seconds until the command ends, where its work was planned, else until the stage ends."""
        done = self._done_until_now()
        if self._planned and done > 0 and self._working_since is not None:
            spent = time.monotonic() - self._working_since
            return spent / done * max(self._planned - done, 0.0)
        return self._tasks[-1]._left() if self._tasks else None

    @property
    def _stream(self) -> TextIO:
        return sys.stderr if self.verbosity == "json" and not self._in_worker else sys.stdout

    @property
    def _interactive(self) -> bool:
        if not self._speaks or self.verbosity == "quiet":
            return False
        return self._stream.isatty() if self._wants_bar is None else self._wants_bar

    def _print(self, text: str) -> None:
        if not self._speaks:
            return
        text = visible(text)
        self._last_said = time.monotonic()
        try:
            if self._display is None:
                print(text, file=self._stream, flush=True)
            else:
                self._display.console.print(text, markup=False, highlight=False, soft_wrap=True)
        except OSError:  # nobody reads any more: a job goes on without words
            self._speaks = False

    def _begin(self, task: Task) -> None:
        self._tasks.append(task)
        if self._working_since is None:
            self._working_since = time.monotonic()
        if not self._interactive:
            self.say(f"{task.description} ({task.total})")
            return
        if self._display is None:
            self._display = _make_display(self._stream)
            self._display.add_task("", total=1.0, count="", left="")
            self._display.start()
        self._show()

    def _update(self, task: Task) -> None:
        if self._display is not None:
            self._show()
        elif self._speaks and task.completed < task.total:
            now = time.monotonic()
            if now - task._shown >= PLAIN_INTERVAL_S:
                task._shown = now
                self.say(self._line(task))

    def _end(self, task: Task, *, finished: bool) -> None:
        self._tasks.remove(task)
        self._done += task._done
        if self._display is None:
            if finished and time.monotonic() - task._started >= PLAIN_INTERVAL_S:
                self.say(self._line(task))
        elif self._tasks:
            self._show()
        else:
            self._display.stop()
            self._display = None

    def _line(self, task: Task) -> str:
        elapsed = time.monotonic() - task._started
        text = f"{task.description}: {task.completed}/{task.total}, {_clock(elapsed)}"
        left = self.left()
        return text if not left else f"{text}, {_clock(left)} left"

    def _show(self) -> None:
        """The one bar: of the command where its work was planned, else of the stage."""
        assert self._display is not None
        task, left = self._tasks[-1], self.left()
        share = task.completed / max(task.total, 1)
        if self._planned:
            share = min(self._done_until_now() / self._planned, 1.0)
        self._display.update(
            self._display.task_ids[0],
            completed=share,
            description=task.description,
            count=f"{task.completed}/{task.total}",
            left=_clock(time.monotonic() - (self._working_since or 0.0))
            + ("" if left is None else f", {_clock(left)} left"),
        )

    def _done_until_now(self) -> float:
        return self._done + sum(task._done for task in self._tasks)

    def _break_silence(self) -> None:
        while not self._over.wait(1.0):
            if time.monotonic() - self._last_said >= SILENCE_S:
                self.say(self._line(self._tasks[-1]) if self._tasks else "still working")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{rest:02d} h"
    return f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"


def _make_display(stream: TextIO) -> RichProgress:
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[left]}"),
        console=make_console(stream),
        transient=True,
    )
