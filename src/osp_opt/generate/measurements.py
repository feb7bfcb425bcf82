"""Measurements shared out over the ranks, each in the ledger as soon as it is finished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from osp_opt.base.ledger import Key, TrialLedger, key_text
from osp_opt.system.context import WorkerContext
from osp_opt.system.parallel import Parallel

__all__ = ["Measurements"]

Values = dict[str, Any]


class Measurements:
    """A ledger that every rank reads and rank 0 writes. All methods are collective.

    Args:
        path: of the ledger.
        context: whose ranks share the work.
    """

    def __init__(self, path: Path, context: WorkerContext) -> None:
        self._ledger = TrialLedger(path)
        self._parallel = context.parallel
        self._progress = context.progress

    def of(
        self,
        keys: Sequence[Key],
        measure: Callable[[int], Values],
        what: str,
        prepare: Callable[[list[int]], None] | None = None,
        costs: Sequence[float] = (),
        layout: Callable[[list[int]], Parallel] | None = None,
    ) -> list[Values]:
        """The values of every key: from the ledger, or now by `measure(index of the key)`.

        A key that is asked for twice is measured once. `what` names the work for the progress
        bar ("" shows none); `prepare` is told, on every rank, what is about to be measured;
        `costs` are the keys' parts of the work that was planned for the command; `layout` gives the
        ranks the layout in which it is measured.
        """
        texts = [key_text(key) for key in keys]
        held = {
            text: found
            for text, key in zip(texts, keys, strict=True)
            if (found := self._ledger.get(key)) is not None
        }
        known = self._parallel.broadcast_object(held)
        first = {text: i for i, text in reversed(list(enumerate(texts)))}
        todo = [i for i, text in enumerate(texts) if text not in known and first[text] == i]
        if todo and prepare is not None:
            prepare(todo)
        if todo and what:
            work = sum(costs[i] for i in todo) if costs else 0.0
            parallel = self._parallel if layout is None else layout(todo)
            with self._progress.task(what, len(todo), work) as task:
                self._run(keys, todo, measure, known, task.advance, parallel)
        else:
            self._run(keys, todo, measure, known, lambda _: None, self._parallel)
        return [known[text] for text in texts]

    def recall(self, key: Key) -> Values | None:
        """What is known of `key`, from this run or one that was killed."""
        return self._parallel.broadcast_object(self._ledger.get(key))

    def record(self, key: Key, values: Values) -> None:
        """Keep what rank 0 found."""
        if self._parallel.is_main:
            self._ledger.add(key, values)

    def _run(
        self,
        keys: Sequence[Key],
        todo: list[int],
        measure: Callable[[int], Values],
        known: dict[str, Values],
        advance: Callable[[int], None],
        parallel: Parallel,
    ) -> None:
        """One measurement per replica at a time, so that a killed run loses no finished one."""
        size = parallel.layout.dp
        for wave in (todo[k : k + size] for k in range(0, len(todo), size)):
            results = [measure(i) for i in parallel.share(wave)]
            for i, values in zip(wave, parallel.gather_shared(results), strict=True):
                known[key_text(keys[i])] = values
                self.record(keys[i], values)
            advance(len(wave))
