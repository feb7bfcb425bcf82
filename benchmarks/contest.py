"""Side by side: every entrant on the same prompts, in turns with the uncached video.

In each round (one prompt) the entrants run in an order that is turned from round to round, with an
uncached full-length run before every few of them: what a machine does to one it does to the other.
Every measurement is in the ledger at once; a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.lab import Lab, column
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import Interval, lost_share, mean_ci, ratio_ci
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.trials import schedule_key

__all__ = ["Entrant", "NotRun", "Runtime", "contest", "reason_of", "summary"]

PLAIN_EVERY = 5  # entrants between two uncached runs


@dataclass(frozen=True)
class Runtime:
    """What an entrant samples with: a block cache, or a transformer that holds its own."""

    cache: Any = None
    transformer: Any = None


@dataclass(frozen=True)
class Entrant:
    """One setting of one method.

    `opened` makes a fresh runtime for each video (not timed). `content` names what is run besides
    method and setting (a policy's digest), so that the ledger never mixes two. `about` goes to the
    results as it is: search cost, where it came from.
    """

    method: str
    setting: str
    schedule: TimestepSchedule
    opened: Callable[[], AbstractContextManager[Runtime]] = field(
        default=lambda: nullcontext(Runtime()), repr=False
    )
    content: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in the ledger."""
        text = f"{self.method}|{self.setting}|{schedule_key(self.schedule)}|{self.content}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class NotRun:
    """An entrant that could not be run, and why."""

    method: str
    setting: str
    reason: str


Measured = tuple[Entrant, list[dict[str, Any]]]


def reason_of(error: Exception) -> str:
    """One line about a failure, without the folders of this machine."""
    text = re.sub(r"(?<!\w)/(?:[^\s/]+/)+", ".../", " ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:160]}"


def contest(
    lab: Lab, section: str, entrants: Sequence[Entrant], requests: Sequence[Request]
) -> tuple[list[Measured], list[NotRun]]:
    """Measure all entrants on all requests; those that raise are left out, with the reason."""
    failed: dict[str, NotRun] = {}
    rows: dict[str, list[dict[str, Any]]] = {entrant.key: [] for entrant in entrants}
    warmed = False
    for number, request in enumerate(requests):
        plain: float | None = None
        since = 0
        shift = number * len(entrants) // max(1, len(requests))
        for entrant in [*entrants[shift:], *entrants[:shift]]:
            if entrant.key in failed:
                continue
            key = f"{section} {entrant.key}, converged, {request.seed} {request.prompt}"
            values = lab.ledger.get(key)
            if values is None:
                if not warmed:
                    lab.denoise(request, TimestepSchedule.uniform(3))
                    warmed = True
                if plain is None or since >= PLAIN_EVERY:
                    plain, since = lab.denoise(request, lab.reference).seconds, 0
                since += 1
                try:
                    with entrant.opened() as runtime:
                        made = lab.denoise(
                            request, entrant.schedule, runtime.cache, runtime.transformer
                        )
                except Exception as error:  # noqa: BLE001 - other people's code, any failure
                    reason = reason_of(error)
                    failed[entrant.key] = NotRun(entrant.method, entrant.setting, reason)
                    print(f"  {entrant.method} {entrant.setting}: not run: {reason}", flush=True)
                    continue
                values = {
                    "seconds": made.seconds,
                    "plain_seconds": plain,
                    **lab.judge(made.latents, request),
                }
                lab.ledger.add(key, values)
            rows[entrant.key].append(values)
        print(f"  {section}: prompt {number + 1} of {len(requests)}", flush=True)
    measured = [(entrant, rows[entrant.key]) for entrant in entrants if entrant.key not in failed]
    return measured, list(failed.values())


def summary(entrant: Entrant, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One line of the results: estimates with 95 % intervals, and the values they are from."""
    ratios = [row["plain_seconds"] / row["seconds"] for row in rows]
    return {
        "method": entrant.method,
        "setting": entrant.setting,
        "steps": len(entrant.schedule),
        "prompts": len(rows),
        "speedup": ratio_ci(ratios).as_json(),
        "psnr": mean_ci(column(rows, "psnr")).as_json(),
        "psnr_median": float(np.median(column(rows, "psnr"))),
        "converged": mean_ci(column(rows, "converged")).as_json(),
        "mse": mean_ci(column(rows, "mse")).as_json(),
        "ssim": mean_ci(column(rows, "ssim")).as_json(),
        "right": mean_ci(column(rows, "right")).as_json(),
        "all_right": mean_ci(column(rows, "all_right")).as_json(),
        "loss": loss(rows).as_json(),
        "about": entrant.about,
        "values": {
            name: column(rows, name)
            for name in ("psnr", "converged", "mse", "right", "full_right", "seconds")
        }
        | {"speedup": ratios},
    }


def loss(rows: Sequence[dict[str, Any]]) -> Interval:
    """Loss of task quality against the full length, as a share of what that reaches."""
    full = column(rows, "full_right")
    if not any(full):
        return Interval(0.0, 0.0, 0.0, len(full))  # nothing right at all: nothing can be lost
    return lost_share(full, column(rows, "right"))
