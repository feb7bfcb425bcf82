"""`optimize` end to end on random weights: a recipe, its proof, resuming, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from running import Job

from osp_opt.base.artifacts import read_meta
from osp_opt.base.errors import OptionError
from osp_opt.base.ledger import TrialLedger
from osp_opt.base.progress import Progress
from osp_opt.calibration.source import open_source
from osp_opt.options import CalibrateOptions, OptimizeOptions, SampleOptions
from osp_opt.sampling.recipe import Recipe
from osp_opt.search.recipe.state import Move, open_search
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel

STEPS = 9
CALIBRATED = ("a green tree", "a boat")


@pytest.fixture
def calibrated(model_flags: dict[str, Any], run_job: Job) -> dict[str, Any]:
    """The flags, after a calibration of two videos."""
    run_job(CalibrateOptions(steps=STEPS, text_prompt=CALIBRATED, **model_flags))
    return model_flags


def options(flags: dict[str, Any], **more: Any) -> OptimizeOptions:
    # A wall clock on a busy machine may miss any speed-up: --force writes what was measured.
    given = {"verify_prompts": 2, "budget": 10.0, "force": True}
    return OptimizeOptions(**{**given, **flags, **more})


def test_a_recipe_is_raced_proved_and_can_be_sampled(
    calibrated: dict[str, Any], run_job: Job
) -> None:
    wanted = options(calibrated, speedup=1.7)
    printed = run_job(wanted)
    path = wanted.recipe_path
    recipe, meta = Recipe.from_file(path), read_meta(path)
    assert meta is not None
    assert 4 <= len(recipe.timesteps) <= STEPS
    assert meta["setting"]["timesteps"] == recipe.timesteps
    assert meta["predicted_speedup"] >= 1.7
    assert len(meta["race"]) >= 2
    assert 4 <= meta["plain"]["steps"] <= STEPS / 1.7
    for words in ("to choose", "raced", "recipe: ", "plain steps", "sample --recipe"):
        assert words in printed
    # Who chooses does not testify: no prompt of the proof was raced or calibrated on.
    proved = {video["prompt"] for video in meta["verified_on"]}
    records = list(TrialLedger(wanted.run_dir / "trials.jsonl").records())
    raced = {key["prompt"] for key, _ in records if key["what"] == "error"}
    assert len(proved) == 2
    assert raced
    assert proved.isdisjoint(raced | set(CALIBRATED))
    # Run again, nothing is measured anew.
    before = (wanted.run_dir / "trials.jsonl").read_bytes()
    content = path.read_bytes()
    run_job(wanted)
    assert (wanted.run_dir / "trials.jsonl").read_bytes() == before
    assert path.read_bytes() == content
    made = SampleOptions(text_prompt=("a red dog",), recipe=path, **calibrated)
    assert "warning" not in run_job(made)


def test_a_recipe_is_shortened_to_the_fewest_steps_and_no_further(
    calibrated: dict[str, Any],
) -> None:
    wanted = options(calibrated)
    wanted.run_dir.mkdir(parents=True)
    context = WorkerContext(Device.open("cpu"), Parallel(), wanted.run_dir, Progress(1))
    search = open_search(open_source(wanted, context))
    recipe = next(each for each in search.candidates(1.2) if each.move == Move())
    lengths = [len(recipe.variant.schedule)]
    while (shorter := search.shortened(recipe, 1.01)) is not None:
        recipe = shorter
        lengths.append(len(recipe.variant.schedule))
    assert lengths == list(range(lengths[0], 3, -1))


def test_what_cannot_be_reached_and_a_limit_of_loss(
    calibrated: dict[str, Any], run_job: Job
) -> None:
    with pytest.raises(OptionError, match=r"--speedup 90: no recipe .* largest possible is \d"):
        run_job(options(calibrated, speedup=90.0))
    # Its proof is of fresh videos, whatever those of the race said.
    wanted = options(calibrated, max_loss=0.5)
    printed = run_job(wanted)
    meta = read_meta(wanted.recipe_path)
    assert meta is not None
    assert meta["asked"] == {"goal": "50%"}
    assert meta["measured"]["loss"]["share"]["count"] == 2
    assert "loss by" in printed


def test_contradictions_are_refused() -> None:
    with pytest.raises(ValueError, match="give one of the two"):
        OptimizeOptions(speedup=3, max_loss=0.01)
    with pytest.raises(ValueError, match="only sampling compares recipes"):
        OptimizeOptions(verify=False)
    with pytest.raises(ValueError, match="--sampler PNDM: takes no recipe; use one of EulerAnc"):
        OptimizeOptions(sampler="PNDM")
