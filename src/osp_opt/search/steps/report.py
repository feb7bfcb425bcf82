"""What a step search leaves: the printed table, schedules with sidecars, table.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from osp_opt.base.artifacts import beside_others, write_json, write_meta
from osp_opt.options import following
from osp_opt.quality.intervals import mean_ci
from osp_opt.quality.loss import visibility
from osp_opt.search.steps.decide import Decision, Search, as_factor

__all__ = ["TABLE_STEPS", "print_table", "write_schedules"]

TABLE_STEPS = (10, 20, 25, 33, 50)  # lengths of the printed table


def print_table(search: Search) -> None:
    """Predicted error against uniform, for a few lengths."""
    say, table = search.context.progress.detail, search.table
    asked = () if search.options.all_steps else search.options.steps
    say("predicted error, searched / not searched:")
    for length in sorted({*TABLE_STEPS, *asked}):
        if 2 < length < len(search.reference):
            objective = search.objectives(length)[0]
            best, uniform = table.best(objective, length), table.uniform(length)
            gain = table.advantage(best.schedule, uniform.schedule, objective)
            say(f"  {length:4d} steps: {as_factor(gain)} ({objective.label})")


def write_schedules(search: Search, decisions: Mapping[int, Decision]) -> None:
    """The schedules with their sidecars, the table of all of them, and the result in words."""
    rows, lines, files = [], [], []
    for number, (length, decision) in enumerate(decisions.items()):
        path, report = search.options.schedule_path, _sidecar(search, decision)
        targets = [path]
        if len(decisions) > 1:
            targets.insert(0, path.with_name(f"{path.stem}-{length}{path.suffix}"))
        elif search.options.out != path:  # a file that was named is that file
            targets = [beside_others(path, report["asked"], f"{length}")]
        path = targets[0]
        for target in targets[: 2 if number == 0 else 1]:
            decision.chosen.schedule.save(target)
            write_meta(target, report)
        rows.append({"steps": length, "file": path.name, **report["search"]})
        lines += [f"schedule of {length} steps: {path}", f"  {_in_words(decision)}"]
        found = decision.verification
        files.append(
            {
                "steps": length,
                "schedule": str(path),
                "better_than_plain": report["search"]["shown_better_than_plain"],
                "measured": None if found is None else found.searched.as_json(),
            }
        )
    write_json(search.context.run_dir / "table.json", rows)
    values = {"schedules": files}
    search.context.progress.result(lines, values, following(search.options, "search-cache"))


def _in_words(decision: Decision) -> str:
    """What is known of a schedule that was written."""
    found, own_steps = decision.verification, decision.uniform.origin
    if decision.chosen == decision.uniform:
        return f"{own_steps} steps: nothing was shown to be better"
    if found is None:
        return "not verified (--verify measures it on fresh prompts)"
    own = found.searched
    faster = "" if own.speedup is None else f"{own.speedup.text(digits=2, unit=' times')} faster, "
    near = (
        f"{own.psnr.text(digits=1, unit=' dB')} to the original ({visibility(own.psnr.estimate)})"
    )
    gain = found.psnr_gain.text(digits=1, unit=" dB")
    return f"{faster}{near}, {gain} nearer than {own_steps} steps"


def _interval(ratios: Sequence[float]) -> dict[str, Any] | None:
    return mean_ci(ratios).as_json() if ratios else None


def _sidecar(search: Search, decision: Decision) -> dict[str, Any]:
    calibration, verification = search.source.calibration, decision.verification
    race = _interval(decision.log_ratios)
    fresh = _interval(() if verification is None else verification.log_ratios)
    return {
        "asked": {"steps": len(decision.candidate.schedule)},
        "setting": search.source.setting(decision.chosen.schedule),
        "timed_on": None if search.trials is None else search.trials.timed_on,
        "search": {
            "method": search.options.method,
            "origin": decision.chosen.origin,
            # What the reasons, predictions and measurements below are about.
            "candidate": decision.candidate.origin,
            "plain_steps": decision.uniform.origin,
            "shown_better_than_plain": (
                verification is not None and decision.better and decision.chosen != decision.uniform
            ),
            "reason": decision.reason,
            "log_predicted_error_over_plain": decision.predicted.as_json(),
            # The best evidence there is: fresh prompts, else those of the race.
            "log_measured_error_over_plain": fresh or race,
            "log_race_error_over_plain": race,
            "log_fresh_error_over_plain": fresh,
            "calibration": {
                "videos": len(calibration.prompts),
                "levels": len(calibration.timesteps),
            },
            "race": decision.race,
            "verification": None if verification is None else verification.as_json(),
        },
    }
