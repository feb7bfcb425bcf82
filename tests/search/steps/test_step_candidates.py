"""The table of a calibration, its predictions and the shortlist."""

from __future__ import annotations

import numpy as np
import pytest
from gaussian_model import ancestral_distance, deterministic_distance, exact_gram

from osp_opt.base.errors import ScheduleError
from osp_opt.calibration import Calibration
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.candidates import StepTable, blend, objectives_for
from osp_opt.search.steps.objectives import StepObjective

VIDEOS = 3


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Three "videos": the Gaussian model with three spreads of its modes."""
    schedule = TimestepSchedule.uniform(100)
    sigmas = schedule.sigmas[:-1]
    grams = [exact_gram(sigmas, np.logspace(-2, top, 200)) for top in (0.5, 0.6, 0.7)]
    no_blocks = np.zeros((VIDEOS, 100, 1, 2, 2), dtype=np.float32)
    return Calibration(
        np.array(schedule.timesteps),
        sigmas,
        np.stack(grams),
        no_blocks,
        no_blocks,
        (1,),
        ("a", "b", "c"),
        (0, 0, 0),
    )


@pytest.mark.parametrize(("steps", "bound"), [(10, 0.0262), (20, 0.0078), (50, 0.0017)])
def test_best_schedule_of_the_refined_table(
    calibration: Calibration, steps: int, bound: float
) -> None:
    found = StepTable(calibration).best(StepObjective("klub"), steps).schedule
    assert (len(found), found.timesteps[0], found.timesteps[-1]) == (steps, 999.0, 0.0)
    assert ancestral_distance(np.array(found.timesteps)) <= bound


def test_predictions_order_schedules_and_know_their_spread(calibration: Calibration) -> None:
    table, objective = StepTable(calibration), StepObjective("klub")
    searched, uniform = table.best(objective, 20).schedule, table.uniform(20).schedule
    assert table.costs(searched, objective).shape == (VIDEOS,)
    gain = table.advantage(searched, uniform, objective)
    assert gain.count == VIDEOS
    assert gain.low < gain.estimate < gain.high < np.log(0.7)
    assert table.advantage(uniform, uniform, objective).estimate == 0.0
    finer = table.uniform(21).schedule
    assert table.advantage(finer, uniform, objective).high < 0


def test_cost_of_a_planned_schedule_is_the_planned_cost(calibration: Calibration) -> None:
    table, objective = StepTable(calibration), StepObjective("pathwise", 0.5, 0.5)
    plan = table.plan(objective)
    for steps in (5, 12, 30):
        found = table.best(objective, steps).schedule
        assert table.costs(found, objective).mean() == pytest.approx(plan.costs[steps], rel=1e-9)


def test_shortlist_begins_with_uniform_and_holds_no_twins(calibration: Calibration) -> None:
    table = StepTable(calibration)
    found = table.shortlist(20, objectives_for("EulerAncestralDiscrete"))
    assert found[0].origin == "uniform"
    assert any(candidate.origin.startswith("0.5 klub") for candidate in found)
    for i, one in enumerate(found):
        for other in found[:i]:
            gap = np.array(one.schedule.timesteps) - np.array(other.schedule.timesteps)
            assert np.abs(gap).max() > 0.5
    assert table.shortlist(20, objectives_for("EulerAncestralDiscrete"), 3) == found[:3]


def test_whole_timesteps_for_samplers_that_round(calibration: Calibration) -> None:
    table = StepTable(calibration, "DDIM")
    for candidate in table.shortlist(25, objectives_for("DDIM")):
        assert all(t == round(t) for t in candidate.schedule.timesteps)
    best = table.best(objectives_for("DDIM")[0], 25).schedule
    uniform = deterministic_distance(np.array(table.uniform(25).schedule.timesteps))
    assert deterministic_distance(np.array(best.timesteps)) < uniform


def test_objectives_follow_sampler_and_wish() -> None:
    names = {o.name for o in objectives_for("EulerAncestralDiscrete", "distribution")}
    assert names == {"klub"}
    assert {o.name for o in objectives_for("DDPM", "video")} == {"pathwise"}
    for sampler in ("EulerDiscrete", "DPMSolverMultistep", "HeunDiscrete", "DDIM"):
        assert {o.name for o in objectives_for(sampler, "video")} == {"deterministic"}
        assert {o.name for o in objectives_for(sampler)} == {"deterministic", "klub"}
    assert objectives_for("DDIM")[0].name == "deterministic"
    assert objectives_for("DPMSolverMultistep")[0].name == "klub"


def test_blends_stay_schedules(calibration: Calibration) -> None:
    table = StepTable(calibration)
    one, other = table.best(StepObjective("klub"), 10), table.uniform(10)
    np.testing.assert_allclose(
        blend(one, other, 0.25).schedule.timesteps,
        0.75 * np.array(one.schedule.timesteps) + 0.25 * np.array(other.schedule.timesteps),
    )


def test_timesteps_outside_the_calibration_are_refused(calibration: Calibration) -> None:
    inner = Calibration(
        calibration.timesteps[10:90],
        calibration.sigmas[10:90],
        calibration.step_gram[:, 10:90, 10:90],
        calibration.block_gram[:, 10:90],
        calibration.guided_block_gram[:, 10:90],
        (1,),
        calibration.prompts,
        calibration.seeds,
    )
    with pytest.raises(ScheduleError, match="outside the calibrated range"):
        StepTable(inner).costs(TimestepSchedule.uniform(5), StepObjective("klub"))
