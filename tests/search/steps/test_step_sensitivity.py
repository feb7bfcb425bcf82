"""What the errors of a few schedules say of the model, on the exactly solvable one."""

from __future__ import annotations

import numpy as np
import pytest
from gaussian_model import coupled_error, exact_gram

from osp_opt.calibration import Calibration
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.search.steps.candidates import StepTable, objectives_for
from osp_opt.search.steps.objectives import StepObjective
from osp_opt.search.steps.sensitivity import fit_sensitivity

SAMPLER = "EulerAncestralDiscrete"


@pytest.fixture(scope="module")
def table() -> StepTable:
    schedule = TimestepSchedule.uniform(100)
    gram = exact_gram(schedule.sigmas[:-1], np.logspace(-2, np.log10(4.0), 200))[None]
    blocks = np.zeros((1, 100, 1, 2, 2), dtype=np.float32)
    timesteps = np.array(schedule.timesteps)
    return StepTable(
        Calibration(timesteps, schedule.sigmas[:-1], gram, blocks, blocks, (1,), ("a",), (0,))
    )


@pytest.mark.parametrize("steps", [10, 20, 33, 50])
def test_fitted_schedule_is_as_good_as_the_best_that_was_measured(
    table: StepTable, steps: int
) -> None:
    reference = table.recorded_K
    candidates = [c.schedule for c in table.shortlist(steps, objectives_for(SAMPLER), 6)]
    errors = [coupled_error(np.array(c.timesteps), reference) for c in candidates]
    fitted = table.best(fit_sensitivity(table, candidates, errors), steps).schedule
    assert coupled_error(np.array(fitted.timesteps), reference) <= 1.02 * min(errors)


def test_the_right_pair_is_found_when_errors_are_its_own(table: StepTable) -> None:
    """Errors made by the cost itself, in any unit: that cost explains them."""
    truth = StepObjective("pathwise", 2.0, 1.0)
    candidates = [c.schedule for c in table.shortlist(25, objectives_for(SAMPLER))]
    fitted = fit_sensitivity(table, candidates, 7.0 * table.mean_costs(candidates, truth))
    assert fitted.heaviest() == truth
    found = table.mean_costs([table.best(fitted, 25).schedule], truth)[0]
    assert found <= 1.02 * table.plan(truth).costs[25]


def test_schedules_that_follow_the_reference_keep_to_its_levels(table: StepTable) -> None:
    for objective in (StepObjective("pathwise", 0.5, 0.5), StepObjective("deterministic", 0.5)):
        found = table.best(objective, 30).schedule
        assert set(found.timesteps) <= set(table.recorded_K.tolist())
    klub = table.best(StepObjective("klub"), 30).schedule
    assert not set(klub.timesteps) <= set(table.recorded_K.tolist())
