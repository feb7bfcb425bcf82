"""The ten sample methods against trajectories of the official code (diffusers 0.28)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from osp_opt.base.errors import OptionError, ScheduleError
from osp_opt.base.samplers import FOLLOW_TIMESTEPS
from osp_opt.sampling.noise import CoupledNoise, GeneratorNoise
from osp_opt.sampling.samplers import sample_with_scheduler
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import (
    SAMPLERS,
    adopt_scheduler,
    first_sigma,
    make_scheduler,
    sampler_name,
    set_schedule,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "schedulers"
METHODS = json.loads((GOLDEN / "schedulers.json").read_text())["methods"]


def toy_eps(x: Tensor, timestep: float, step: int) -> Tensor:
    """The network of the golden trajectories (schedulers.json, toy_model).

    The file's text says roll(x, -1); the stored trajectories were made with a shift of +1.
    """
    t = torch.tensor(timestep) / 1000
    wave = torch.sin(3 * torch.roll(x, 1, dims=-1) + 5 * t)
    return 0.8 * torch.tanh(x) + 0.15 * wave + 0.05 * torch.cos(7 * t)


class RecordedNoise:
    """Replays given draws, one for each step that asks."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        self.draws = list(draws)

    def initial(self, shape: Sequence[int], sigma: float | None = None) -> Tensor:
        raise AssertionError("the start is given")

    def step(self, index: int, sigma_from: float, sigma_to: float) -> Tensor:
        assert sigma_from > sigma_to >= 0
        return self.draws.pop(0)


def trajectory(name: str, data: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    scheduler = make_scheduler(name)
    set_schedule(scheduler, TimestepSchedule.uniform(10))
    states = [data["in.latents"] * scheduler.init_noise_sigma]
    inputs: list[Tensor] = []

    def network(x: Tensor, *, timestep: float, step: int) -> Tensor:
        inputs.append(x)
        return toy_eps(x, timestep, step)

    draws = [data["in.noises"][i] for i in METHODS[name]["noise_indices_used_for_10"]]
    sample_with_scheduler(
        scheduler, network, states[0], RecordedNoise(draws), lambda i, t, x: states.append(x)
    )
    return states, inputs


def test_names_are_the_reference_tools() -> None:
    assert set(SAMPLERS) == set(METHODS)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_timesteps(name: str) -> None:
    scheduler = make_scheduler(name)
    for count in (10, 25):
        set_schedule(scheduler, TimestepSchedule.uniform(count))
        want = METHODS[name][f"timesteps_{count}"]
        assert scheduler.timesteps.tolist() == pytest.approx(want, abs=1e-3)
    assert float(scheduler.init_noise_sigma) == pytest.approx(METHODS[name]["init_noise_sigma"])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_trajectory(name: str) -> None:
    data = load_file(GOLDEN / "trajectories.safetensors")
    states, inputs = trajectory(name, data)
    for ours, key in ((states, "trajectory"), (inputs, "model_inputs")):
        want = data[f"out.{name}.{key}"]
        assert torch.stack(ours).shape == want.shape
        torch.testing.assert_close(
            torch.stack(ours), want, rtol=0, atol=1e-5 * float(want.abs().max())
        )


@pytest.mark.parametrize("name", ["EulerAncestralDiscrete", "DDPM", "KDPM2AncestralDiscrete"])
def test_a_generator_is_consumed_as_by_diffusers(name: str) -> None:
    """Our injected noise against the unchanged diffusers class that draws for itself."""
    base = type(make_scheduler(name)).__mro__[1]
    shape = (2, 4, 2, 4, 5)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    arguments = METHODS[name]["constructor_args"]
    theirs = base(**arguments)
    theirs.set_timesteps(7)
    x = start * theirs.init_noise_sigma
    generator = torch.Generator().manual_seed(11)
    for i, t in enumerate(theirs.timesteps):
        eps = toy_eps(theirs.scale_model_input(x, t), float(t), i)
        x = theirs.step(eps, t, x, generator=generator, return_dict=False)[0]

    ours = make_scheduler(name)
    set_schedule(ours, TimestepSchedule.uniform(7))
    noise = GeneratorNoise(torch.Generator().manual_seed(11), shape)
    got = sample_with_scheduler(
        ours,
        lambda x, *, timestep, step: toy_eps(x, timestep, step),
        start * ours.init_noise_sigma,
        noise,
    )
    torch.testing.assert_close(got, x, rtol=0, atol=1e-5 * float(x.abs().max()))
    rest = torch.randn(3, generator=generator)
    assert torch.equal(rest, torch.randn(3, generator=noise.generator))


OWN = TimestepSchedule((999.0, 811.75, 640.2, 493.3, 257.5, 97.0, 0.0))


@pytest.mark.parametrize("name", FOLLOW_TIMESTEPS)
def test_own_schedule_is_followed(name: str) -> None:
    scheduler = make_scheduler(name)
    set_schedule(scheduler, OWN)
    followed = list(dict.fromkeys(float(t) for t in scheduler.timesteps))  # Heun doubles them
    whole = make_scheduler(name).timesteps.dtype == torch.int64 or followed == [
        float(round(t)) for t in OWN.timesteps
    ]
    assert followed == pytest.approx(
        [round(t) for t in OWN.timesteps] if whole else OWN.timesteps, abs=1e-3
    )
    shape = (1, 4, 2, 4, 5)
    noise = CoupledNoise(0, "", shape)
    start = noise.initial(shape, first_sigma(scheduler)) * scheduler.init_noise_sigma
    result = sample_with_scheduler(
        scheduler, lambda x, *, timestep, step: toy_eps(x, timestep, step), start, noise
    )
    assert bool(torch.isfinite(result).all())


def test_ddim_on_own_timesteps_equals_diffusers_on_its_stride() -> None:
    """A schedule that happens to be DDIM's own must give DDIM's own result."""
    start = torch.randn(1, 4, 2, 4, 5, generator=torch.Generator().manual_seed(2))
    results = []
    for own in (False, True):
        scheduler = make_scheduler("DDIM")
        if own:
            timesteps = tuple(float(t) for t in range(900, -1, -100))
            set_schedule(scheduler, TimestepSchedule(timesteps))
        else:
            set_schedule(scheduler, TimestepSchedule.uniform(10))
        results.append(
            sample_with_scheduler(
                scheduler,
                lambda x, *, timestep, step: toy_eps(x, timestep, step),
                start,
                RecordedNoise([]),
            )
        )
    atol = 5e-6 * float(results[0].abs().max())
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["PNDM", "DEISMultistep", "KDPM2AncestralDiscrete"])
def test_refusal_names_the_samplers_that_can(name: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        set_schedule(make_scheduler(name), OWN)
    assert name in str(caught.value)
    assert all(other in str(caught.value) for other in FOLLOW_TIMESTEPS)
    assert name not in FOLLOW_TIMESTEPS


def test_timesteps_that_round_to_one_are_refused() -> None:
    close = TimestepSchedule((999.0, 41.2, 40.9, 0.0))
    with pytest.raises(ScheduleError, match=r"41\.2 and 40\.9 both round to 41"):
        set_schedule(make_scheduler("DDIM"), close)
    set_schedule(make_scheduler("EulerDiscrete"), close)


def test_unknown_sampler_is_refused() -> None:
    with pytest.raises(OptionError, match=r"UniPC.*EulerAncestralDiscrete"):
        make_scheduler("UniPC")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_adopting_a_diffusers_scheduler(name: str) -> None:
    ours = make_scheduler(name)
    theirs = next(c for c in type(ours).__mro__ if c.__name__.endswith("Scheduler"))
    plain = theirs(**METHODS[name]["constructor_args"])
    adopted = adopt_scheduler(plain)
    assert adopted is not plain
    assert type(adopted) is type(ours)
    assert sampler_name(plain) == sampler_name(adopted) == name
    kept = {k: v for k, v in plain.config.items() if not k.startswith("_")}
    assert {k: adopted.config[k] for k in kept} == kept
    with pytest.raises(OptionError, match="object"):
        sampler_name(object())
