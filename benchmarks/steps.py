"""Section `steps`: uniform against searched schedules, and the reference tool's search."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from benchmarks.contest import Entrant, contest, summary
from benchmarks.lab import Lab, column
from benchmarks.reference_steps import StepSearch, network_evaluations
from osp_opt.base.ledger import TrialLedger
from osp_opt.calibration import Calibration
from osp_opt.calibration.paths import latents_of
from osp_opt.generate.references import load_latents
from osp_opt.model.vae.autoencoder import VAE_SCALE
from osp_opt.options import CALIBRATION_FILE, SearchStepsOptions
from osp_opt.quality.intervals import paired_difference
from osp_opt.sampling.noise import keyed_normal
from osp_opt.sampling.schedule import TimestepSchedule, sigma_of
from osp_opt.sampling.steps import vp_scale
from osp_opt.search.steps.candidates import StepTable, objectives_for
from osp_opt.tiny.prompts import load_prompts

__all__ = ["AYS", "REFERENCE", "TOOL", "UNIFORM", "run", "searched"]

UNIFORM, TOOL, AYS = "uniform", "osp-opt search-steps", "osp-opt search-steps --method ays"
REFERENCE = "reference tool's step search"
REFERENCE_VIDEOS = 5  # one per Monte Carlo sample
SEARCHED_FILE = "searched_schedule"


def run(lab: Lab) -> dict[str, Any]:
    """Search, judge on fresh prompts, and return the section's results."""
    size = lab.size
    table = StepTable(lab.calibration)
    found = searched(lab)
    descended = _by_command(lab, AYS, size.ays_lengths)
    entrants: list[Entrant] = []
    for length in size.lengths:
        own = [Entrant(UNIFORM, f"{length}", table.uniform(length).schedule)]
        for objective in objectives_for("EulerAncestralDiscrete"):
            best = table.best(objective, length).schedule
            about = {"evaluations": 0}
            own.append(Entrant(f"dp, {objective.label}", f"{length}", best, about=about))
        for method, results in ((TOOL, found), (AYS, descended)):
            if f"{length}" in results:
                values = results[f"{length}"]
                schedule = TimestepSchedule(tuple(values["timesteps"]))
                about = {name: values[name] for name in ("evaluations", "origin")}
                own.append(Entrant(method, f"{length}", schedule, about=about))
        if length in size.reference_lengths:
            values = _reference(lab, length)
            about = {"evaluations": values["evaluations"]}
            schedule = TimestepSchedule(tuple(values["timesteps"]))
            own.append(Entrant(REFERENCE, f"{length}", schedule, about=about))
        entrants += own
    measured, failed = contest(lab, "steps", entrants, lab.judging(size.judges[0]))
    assert not failed, failed
    baseline = {len(e.schedule): rows for e, rows in measured if e.method == UNIFORM}
    lines = []
    for entrant, rows in measured:
        line = summary(entrant, rows)
        even = baseline[len(entrant.schedule)]
        line["gain"] = paired_difference(column(rows, "psnr"), column(even, "psnr")).as_json()
        line["right_gain"] = paired_difference(
            column(rows, "right"), column(even, "right")
        ).as_json()
        lines.append(line)
    return {
        "rows": lines,
        "reference_evaluations_at_50": network_evaluations(50),
        "calibration_videos": len(lab.calibration.prompts),
    }


def searched(lab: Lab, lengths: Sequence[int] = ()) -> dict[str, Any]:
    """What `osp-opt search-steps` wrote for each length (default: all), and what that cost."""
    return _by_command(lab, TOOL, lengths or lab.size.lengths)


def _by_command(lab: Lab, method: str, lengths: Sequence[int]) -> dict[str, Any]:
    size = lab.size
    ays = method == AYS
    common = {
        **lab.common,
        "workdir": lab.work / ("ays" if ays else "steps"),
        "calibration": lab.calibration_folder,
        "steps": tuple(lengths),
        "text_prompt": load_prompts("verification"),
    }
    if ays:
        options = SearchStepsOptions(
            **common,
            method="ays",
            candidates=size.ays_candidates,
            monte_carlo_iters=size.ays_iterations,
            verify=False,  # the schedule itself is wanted, whatever a race thinks of it
            force=True,
        )
    else:
        options = SearchStepsOptions(
            **common, budget=size.step_budget, verify_prompts=size.step_verify, verify=True
        )

    def measure() -> dict[str, Any]:
        print(f"  {method}, {', '.join(str(n) for n in lengths)} steps", flush=True)
        lines = lab.run_job(options)
        report = json.loads((options.run_dir / "table.json").read_text())
        several = len(lengths) > 1
        results: dict[str, Any] = {}
        for row in report:
            length = row["steps"]
            name = f"{SEARCHED_FILE}-{length}.txt" if several else f"{SEARCHED_FILE}.txt"
            schedule = TimestepSchedule.from_file(options.run_dir / name)
            results[f"{length}"] = {
                "timesteps": list(schedule.timesteps),
                "origin": row["origin"],
                "reason": row["reason"],
                "evaluations": (
                    _said_evaluations(lines, length) if ays else _raced_evaluations(options, length)
                ),
            }
        return results

    knobs = f"{options.budget:g} {options.verify_prompts} {options.candidates} "
    knobs += f"{options.monte_carlo_iters}"
    return lab.remembered(f"{method} {list(lengths)} {knobs}", measure)


def _said_evaluations(lines: Sequence[str], length: int) -> int:
    for line in lines:
        found = re.fullmatch(rf"{length} steps: (\d+) network evaluations", line)
        if found is not None:
            return int(found[1])
    return 0


def _raced_evaluations(options: SearchStepsOptions, length: int) -> int:
    """Network evaluations of the race and the verification of one length, from the ledger.

    The full-length videos they are compared with serve all lengths and are counted for each.
    """
    made = 0
    prompts: set[str] = set()
    full = int(json.loads((options.run_dir / "curve.json").read_text())["reference_steps"])
    for key, _ in TrialLedger(options.run_dir / "trials.jsonl").records():
        if key["steps"] != length:
            continue
        made += 2 * (length + full) if key["what"] == "timing" else length
        if key["prompt"] not in prompts and key["what"] != "timing":
            prompts.add(key["prompt"])
            made += full
    return made


def _reference(lab: Lab, length: int) -> dict[str, Any]:
    """The reference tool's schedule of `length` steps."""
    size = lab.size

    def measure() -> dict[str, Any]:
        search = StepSearch(
            _Unconditional(lab),
            REFERENCE_VIDEOS,
            size.reference_candidates,
            size.reference_iterations,
            lab.seed,
        )
        schedule, made = search.search(length)
        print(f"  {REFERENCE}, {length} steps: {made} network evaluations", flush=True)
        return {"timesteps": list(schedule.timesteps), "evaluations": made}

    shape = f"{size.reference_candidates} {size.reference_iterations}"
    return lab.remembered(f"reference steps {length} {shape}", measure)


class _Unconditional:
    """The network without prompt or guidance on calibration videos as the reference sees them:
    frames in BGR within [0, 1] where the autoencoder was trained on RGB within [-1, 1].
    """

    def __init__(self, lab: Lab) -> None:
        self._maker = lab.maker
        self._latents = torch.cat([self._encoded(lab, n) for n in range(REFERENCE_VIDEOS)])
        self._calls = 0

    def _encoded(self, lab: Lab, number: int) -> Tensor:
        """Latents [1 c t h w] of a calibration video."""
        calibration = Calibration.load(lab.calibration_folder / CALIBRATION_FILE)
        _, latents = latents_of(calibration, lab.calibration_folder)[number]
        frames = self._maker.decode(load_latents(latents)[None])
        video = torch.from_numpy(frames[..., ::-1].copy()).float() / 255.0
        vae = self._maker.pipeline.vae
        with torch.no_grad():
            video = rearrange(video, "t h w c -> 1 c t h w")
            posterior = vae.encode(
                video.to(device=self._maker.device.torch_device, dtype=vae.dtype)
            )
        return posterior.latent_dist.mode().float().cpu() * VAE_SCALE

    @torch.no_grad()
    def __call__(self, videos: Sequence[int], timesteps: Sequence[float]) -> np.ndarray[Any, Any]:
        maker = self._maker
        transformer = maker.pipeline.transformer
        device = maker.device.torch_device
        negative = maker.embed("").negative
        assert negative is not None
        count = len(videos)
        text = transformer.encode_text(
            negative[0].expand(count, -1, -1).to(device), negative[1].expand(count, -1).to(device)
        )
        sigmas = sigma_of(np.asarray(timesteps, np.float64))
        x0 = self._latents[list(videos)]
        noise = keyed_normal(f"reference steps\0{self._calls}", x0.shape)
        self._calls += 1
        sigma = torch.from_numpy(sigmas).float().reshape(-1, 1, 1, 1, 1)
        x = x0 + sigma * noise
        scale = torch.tensor([vp_scale(float(s)) for s in sigmas]).reshape(sigma.shape)
        eps = transformer(
            (x / scale).to(device=device, dtype=transformer.dtype),
            torch.tensor(list(timesteps), device=device, dtype=torch.float32),
            text=text,
            return_dict=False,
        )[0][:, : x.shape[1]]
        denoised: np.ndarray[Any, Any] = (x - sigma * eps.float().cpu()).numpy()
        return denoised
