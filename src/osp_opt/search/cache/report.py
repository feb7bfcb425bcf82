"""What a cache search leaves: the policy with its provenance, and what is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from osp_opt import __version__
from osp_opt.base.artifacts import beside_others, write_meta
from osp_opt.cache.policy import CachePolicy
from osp_opt.options import following
from osp_opt.quality.loss import CHANGED_PSNR, Verdict, visibility
from osp_opt.search.cache.candidates import Candidate
from osp_opt.search.cache.check import PredictorCheck
from osp_opt.search.cache.rivals import Rival
from osp_opt.search.cache.state import CacheSearch
from osp_opt.search.evidence import Evidence

__all__ = ["Found", "write_policy"]

NOTABLE_LOSS = 0.01  # of quality: a policy that loses more is not written without a word


@dataclass(frozen=True)
class Found:
    """A policy that was chosen, and what fresh videos showed of it (None: nothing was sampled)."""

    candidate: Candidate
    evidence: Evidence | None = None
    predictor: PredictorCheck | None = None
    verdict: Verdict | None = None
    rivals: tuple[Rival, ...] = ()

    @property
    def policy(self) -> CachePolicy:
        """What is reused, and when."""
        return self.candidate.policy


def write_policy(search: CacheSearch, found: Found) -> None:
    """Write the policy and its provenance; tell the result."""
    options, policy = search.options, found.candidate.policy
    path, meta = options.policy_path, _meta(search, found)
    if options.out != path:  # a file that was named is that file
        path = beside_others(path, meta["asked"], "-".join(map(str, meta["asked"].values())))
    policy.save(path)
    write_meta(path, meta)
    held = search.maker.cache_bytes(policy, options)
    lines = [
        f"cache policy: {policy} -> {path}",
        f"memory for reused changes: {held / 2**20:.3g} MiB a video at most",
    ]
    progress, evidence = search.context.progress, found.evidence
    for line in policy.warnings():
        progress.warn(line)
    if not policy.is_four_field:
        search.say("only osp-opt reads this form of policy (the reference tool reads four fields)")
    if evidence is None:
        predicted = f"predicted speed-up of denoising: {found.candidate.speedup:.2f}x"
        lines.append(f"{predicted}; not verified by sampling (--verify does)")
    else:
        lines += evidence.lines()
        if search.yardstick is not None:
            lines.append(search.yardstick.line(evidence.psnr))
        lines += [rival.line() for rival in found.rivals]
        lost = evidence.loss.verdict(options.max_loss or NOTABLE_LOSS) == "lost"
        if lost or evidence.psnr.estimate < CHANGED_PSNR:
            near = evidence.psnr.estimate
            progress.warn(
                f"{near:.1f} dB to the original: {visibility(near)}; a smaller --ratio loses less, "
                "and --max-loss 1% finds the fastest policy that loses no more"
            )
    if found.predictor is not None:
        progress.detail(found.predictor.line())
    progress.detail(f"work spent on sampling: {search.trials.spent:.1f} generations")
    values = {
        "cache": str(path),
        "policy": str(policy),
        "bytes_held": held,
        "predicted_speedup": found.candidate.speedup,
        "measured": None if evidence is None else evidence.as_json(),
        "verdict": found.verdict,
        "rivals": [rival.as_json() for rival in found.rivals],
    }
    progress.result(lines, values, following(options, "sample"))


def _meta(search: CacheSearch, found: Found) -> dict[str, Any]:
    options = search.options
    goal = f"{options.ratio:g}x" if options.max_loss is None else f"{100 * options.max_loss:g}%"
    meta: dict[str, Any] = {
        "made_by": f"osp-opt {__version__} search-cache",
        # What tells this search's result from others in the same folder.
        "asked": {"policy": options.policy, "goal": goal, "steps": f"{search.num_steps}steps"},
        "setting": search.maker.setting(search.schedule).as_json(),
        "schedule_file": None if options.schedule is None else str(options.schedule),
        "policy": str(found.candidate.policy),
        "calls_per_step": search.maker.calls_per_step,
        "device": search.context.device.name,
        "timed_on": search.maker.timed_on,
        "block_times_seconds": search.times.as_json(),
        "predicted_speedup": found.candidate.speedup,
        "step_importance": [float(value) for value in search.importance],
        "generations_spent": search.trials.spent,
    }
    if found.evidence is not None:
        meta["measured"] = found.evidence.as_json()
        meta["predictor"] = None if found.predictor is None else found.predictor.as_json()
        if found.rivals:
            meta["rivals"] = [rival.as_json() for rival in found.rivals]
        meta["verified_on"] = [request.as_json() for request in search.fresh_requests]
    return meta
