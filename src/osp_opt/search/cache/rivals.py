"""`--also magcache,teacache`: other people's caches at the speed of the policy that was found.

Their thresholds are set on the race's videos, so that they are as fast as the policy; fresh videos,
which chose neither, say whose error is smaller.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from osp_opt.cache.policy import CachePolicy
from osp_opt.pipelines.maker import Request
from osp_opt.quality.intervals import FEWEST, Interval, ratio_ci
from osp_opt.search.evidence import TIMED_VIDEOS, Evidence, evidence_of, log_error_ratios
from osp_opt.search.trials import Variant

if TYPE_CHECKING:
    from osp_opt.search.cache.candidates import Candidate
    from osp_opt.search.cache.rival_rules import Rule
    from osp_opt.search.cache.state import CacheSearch

__all__ = ["Rival", "judge_rivals", "rival_work"]

SLOWER = 0.02  # a rival may be slower than the policy by so much
ATTEMPTS = 3  # thresholds that are timed
TIMED = 2  # videos of the race on which a threshold is timed
_BISECTIONS = 40
_THRESHOLDS = 1e-8, 1e4  # least and largest that are tried


@dataclass(frozen=True)
class Rival:
    """Another cache beside the policy, over fresh videos.

    error_ratio: its latents' squared error over the policy's. as_fast: whether it was measured to
    be as fast as the policy, on videos of the race.
    """

    name: str
    threshold: float
    evidence: Evidence
    error_ratio: Interval
    as_fast: bool

    @property
    def verdict(self) -> str:
        """Whether it is shown to lose more or less than the policy."""
        if not self.as_fast:
            return "slower than the policy, and no threshold tried made it as fast"
        if self.error_ratio.count < FEWEST:
            return "too few videos to say which loses less"
        if self.error_ratio.low > 1.0:
            return "loses more than the policy"
        if self.error_ratio.high < 1.0:
            return "loses less than the policy"
        return "not shown to lose more or less"

    def line(self) -> str:
        """For the terminal."""
        speed = self.evidence.speedup
        told = "" if speed is None else f" at {speed.text(digits=2, unit='x')}"
        return (
            f"{self.name}{told}: {self.error_ratio.text(digits=2)} times the policy's error, PSNR "
            f"{self.evidence.psnr.text(digits=1, unit=' dB')}; {self.verdict}"
        )

    def as_json(self) -> dict[str, Any]:
        """The fields; intervals as objects."""
        return {
            "name": self.name,
            "threshold": self.threshold,
            "as_fast": self.as_fast,
            "error_ratio": self.error_ratio.as_json(),
            "verdict": self.verdict,
            "measured": self.evidence.as_json(),
        }


def rival_work(rivals: int, fresh: int) -> float:
    """What they take at most, in videos of the original."""
    of_each_video = 2  # to see what is reused, and to compare; a timed one counts twice
    timed = 2 * (ATTEMPTS * TIMED + min(TIMED_VIDEOS, fresh))
    return float(rivals * (of_each_video * fresh + ATTEMPTS * TIMED + timed))


def judge_rivals(search: CacheSearch, chosen: Candidate) -> tuple[Rival, ...]:
    """Each cache that `--also` names, on the fresh videos."""
    own = search.variant(chosen)
    timed = search.race_requests[:TIMED]
    aim = ratio_ci(search.trials.speedups(own, timed)).estimate
    (own_rows,) = search.trials.compared([own], search.fresh_requests)
    found = []
    for rule in search.rules:
        threshold, as_fast = _as_fast(search, rule, chosen.speedup, aim)
        rows: list[dict[str, Any]] = []
        speeds: list[float] = []
        for request in search.fresh_requests:
            variant = _variant(search, rule, threshold, request)
            rows += search.trials.compared([variant], [request])[0]
            if len(speeds) < TIMED_VIDEOS:
                speeds += search.trials.speedups(variant, [request])
        ratios = np.exp(log_error_ratios(rows, own_rows)).tolist()
        evidence = evidence_of(rows, speeds)
        found.append(Rival(rule.name, threshold, evidence, ratio_ci(ratios), as_fast))
    return tuple(found)


def _as_fast(search: CacheSearch, rule: Rule, predicted: float, aim: float) -> tuple[float, bool]:
    """The least threshold at which it is `aim` times as fast, and whether it was measured to be.

    `predicted` is what the policy was predicted to be, from which the search for it begins.
    """
    for _ in range(ATTEMPTS):
        threshold = _least_threshold(search, rule, predicted)
        measured = ratio_ci(
            [
                search.trials.speedups(_variant(search, rule, threshold, request), [request])[0]
                for request in search.race_requests[:TIMED]
            ]
        ).estimate
        if measured >= aim * (1.0 - SLOWER):
            return threshold, True
        predicted *= aim / measured
    return threshold, False


def _least_threshold(search: CacheSearch, rule: Rule, speedup: float) -> float:
    """By bisection, of those that are predicted to be so fast; the largest where none is."""
    low, high = _THRESHOLDS
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        predicted = search.times.speedup(rule.expected(middle), search.num_steps)
        low, high = (low, middle) if predicted >= speedup else (middle, high)
    return float(f"{high:.9g}")


def _variant(search: CacheSearch, rule: Rule, threshold: float, request: Request) -> Variant:
    """What it makes of one video, as a plan; the video is made to see it, and remembered."""

    def measure() -> dict[str, Any]:
        policy = rule.of_video(
            threshold, lambda loops: search.maker.denoise(request, search.schedule, loops)
        )
        return policy.to_json()

    expected = rule.expected(threshold)
    if not rule.looks:  # the same for every video
        return Variant(search.schedule, expected)
    what = json.dumps([rule.name, threshold, request.prompt, request.seed], ensure_ascii=False)
    cost = search.trials.cost(Variant(search.schedule, expected))
    return Variant(search.schedule, CachePolicy.from_json(search.trials.once(what, cost, measure)))
