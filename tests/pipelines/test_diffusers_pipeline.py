"""Strangers' pipelines driven from outside, against the pipelines called as everybody does."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    CogVideoXDPMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from tiny_pipelines import FAMILIES, cogvideox, wan
from torch import Tensor

from osp_opt.base.errors import CheckpointError, OptionError, PolicyError, ScheduleError
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.hooks import apply_cache
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.registries import registered_blocks
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.pipelines.diffusers_pipeline import DiffusersPipeline, StepSeen, open_pipeline

PROMPT = "a red ball"
STEPS = 4
CASES = {
    "FlowMatchEuler": lambda: wan(FlowMatchEulerDiscreteScheduler()),
    "UniPC": lambda: wan(
        UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        )
    ),
    "DPM++ flow": lambda: wan(
        DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    ),
    "two experts": lambda: wan(experts=2),
    "DDIM eps": lambda: cogvideox(DDIMScheduler(clip_sample=False)),
    "DPM++ eps": lambda: cogvideox(DPMSolverMultistepScheduler()),
    "DPM of CogVideoX": lambda: cogvideox(
        CogVideoXDPMScheduler(prediction_type="v_prediction", timestep_spacing="trailing")
    ),
}


def plain(pipe: Any, arguments: dict[str, Any], output_type: str = "latent") -> Any:
    """The pipeline as its own documentation calls it."""
    generator = torch.Generator().manual_seed(3)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        prompt=PROMPT,
        num_inference_steps=STEPS,
        generator=generator,
        output_type=output_type,
        **arguments,
    ).frames


def check_equal(pipe: Any, arguments: dict[str, Any]) -> DiffusersPipeline:
    """Own steps, and own levels told as levels: the plain video, to the bit."""
    driven = DiffusersPipeline(pipe, arguments)
    expected = plain(pipe, arguments)
    own = driven.own_levels(STEPS)
    assert torch.equal(driven.denoise(PROMPT, 3, STEPS).latents, expected)
    assert torch.equal(driven.denoise(PROMPT, 3, levels=own).latents, expected)
    assert expected.std() > 0.1
    return driven


def test_own_levels_make_the_plain_video(family: tuple[Any, dict[str, Any]]) -> None:
    pipe, arguments = family
    plain(pipe, arguments)  # its own call leaves attributes behind, too
    scheduler, attributes = pipe.scheduler, set(vars(pipe))
    driven = check_equal(pipe, arguments)
    frames = driven.decode(driven.denoise(PROMPT, 3, STEPS).latents)
    assert np.array_equal(frames, (plain(pipe, arguments, "np")[0] * 255).astype(np.uint8))
    # Nothing of ours is left behind.
    assert pipe.scheduler is scheduler
    assert set(vars(pipe)) == attributes
    for transformer in driven.transformers.values():
        for module in (transformer, *registered_blocks(transformer)):
            assert "forward" not in vars(module)
            registry = getattr(module, "_diffusers_hook", None)
            assert registry is None or not registry.hooks


@pytest.mark.parametrize("case", CASES)
def test_own_levels_make_the_plain_video_with_any_scheduler(case: str) -> None:
    check_equal(*CASES[case]())


def test_the_first_levels_are_pure_noise(driven: DiffusersPipeline) -> None:
    sigmas = driven.steering.scale.sigmas(driven.own_levels(STEPS))
    assert sigmas[0] == 1e6
    assert np.all(np.diff(sigmas) < 0)


def seen_of(driven: DiffusersPipeline, **run: Any) -> list[StepSeen]:
    steps: list[StepSeen] = []
    driven.denoise(PROMPT, 3, on_step=steps.append, **run)
    return steps


@pytest.mark.parametrize("name", ["wan", "ltx", "hunyuan", "mochi"])
def test_flow_matching_steps_are_those_of_the_deterministic_formula(name: str, tiny: Any) -> None:
    """x_VE = x / (1 - s) moves on the line to D: x' = D + (s' / s) (x - D), at odd levels too."""
    driven = DiffusersPipeline(*tiny[name])
    levels = (1000.0, 900.0, 333.3, 120.0)
    steps = seen_of(driven, levels=levels)
    assert [step.timestep for step in steps] == pytest.approx(levels, abs=1e-3)
    for i in range(1, STEPS):
        s = levels[i] / 1000
        following = levels[i + 1] / 1000 if i + 1 < STEPS else 0.0
        x, denoised = steps[i - 1].latents.float(), steps[i].denoised
        expected = denoised + following / s * (x - denoised)
        assert torch.allclose(steps[i].latents.float(), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["wan", "ltx", "cogvideox", "mochi"])
def test_corrected_steps_hold_the_extrapolated_prediction(name: str, tiny: Any) -> None:
    """x_VE moves on the line to D_i + h_i / (2 h_{i-1}) (D_i - D_{i-1}), h steps in log sigma: the
    rule of DPM-Solver++ (2M), by hand from what is seen of the steps.
    """
    driven = DiffusersPipeline(*tiny[name])
    levels = (999.0, 800.0, 500.0, 200.0)
    steps = seen_of(driven, levels=levels, corrections=(0.0, 1.0, 1.0, 0.0))
    plain = seen_of(driven, levels=levels)
    assert torch.equal(steps[0].latents, plain[0].latents)
    assert not torch.equal(steps[1].latents, plain[1].latents)
    sigmas = [float(s) for s in driven.steering.scale.sigmas(levels)] + [0.0]

    def ve(x: Tensor, sigma: float) -> Tensor:
        a = 1 / (1 + sigma) if driven.steering.is_flow else 1 / (1 + sigma**2) ** 0.5
        return x.float() / a

    for i in (1, 2):
        h, before = (np.log(sigmas[k] / sigmas[k + 1]) for k in (i, i - 1))
        held = steps[i].denoised + h / (2 * before) * (steps[i].denoised - steps[i - 1].denoised)
        x = ve(steps[i - 1].latents, sigmas[i])
        expected = held + sigmas[i + 1] / sigmas[i] * (x - held)
        assert torch.allclose(ve(steps[i].latents, sigmas[i + 1]), expected, atol=2e-4)


def test_solvers_of_second_order_take_no_corrections() -> None:
    driven = DiffusersPipeline(*CASES["UniPC"]())
    with pytest.raises(ScheduleError, match="takes no corrected steps"):
        driven.denoise(PROMPT, 3, levels=(1000.0, 500.0, 100.0), corrections=(0.0, 1.0, 0.0))


def test_denoised_predictions_equal_the_hand_computation(tiny: Any) -> None:
    """Wan, by calling its transformer twice: D = x - s (u + g (c - u)). CogVideoX: a x - b v."""
    pipe, arguments = tiny["wan"]
    steps = seen_of(DiffusersPipeline(pipe, arguments), levels=(1000.0, 700.0, 250.0))
    text, empty = pipe.encode_prompt(PROMPT, "", max_sequence_length=16, device="cpu")
    x, t = steps[0].latents, torch.tensor([700.0])
    with torch.no_grad():
        c, u = (pipe.transformer(x, t, embeds, return_dict=False)[0] for embeds in (text, empty))
    by_hand = x - 0.7 * (u + 5.0 * (c - u))
    assert torch.allclose(steps[1].denoised, by_hand, atol=1e-5)

    pipe, arguments = tiny["cogvideox"]
    steps = seen_of(DiffusersPipeline(pipe, arguments), levels=(999.0, 600.0, 77.0))
    abar = float(pipe.scheduler.alphas_cumprod[600])
    text, empty = pipe.encode_prompt(PROMPT, "", max_sequence_length=16, device="cpu")
    x, t = steps[0].latents, torch.tensor([600, 600])
    with torch.no_grad():
        both = pipe.transformer(torch.cat([x, x]), torch.cat([empty, text]), t, return_dict=False)
    u, c = both[0].chunk(2)
    v = u + 6.0 * (c - u)
    assert torch.allclose(steps[1].denoised, abar**0.5 * x - (1 - abar) ** 0.5 * v, atol=1e-5)
    # DDIM to the level that follows, whatever the stride (Song et al. 2021, eq. 12).
    nxt = float(pipe.scheduler.alphas_cumprod[77])
    eps = (x - abar**0.5 * steps[1].denoised) / (1 - abar) ** 0.5
    expected = nxt**0.5 * steps[1].denoised + (1 - nxt) ** 0.5 * eps
    assert torch.allclose(steps[1].latents, expected, atol=1e-5)


@pytest.mark.parametrize("case", ["UniPC", "DPM++ flow", "DPM++ eps", "DDIM eps"])
def test_every_solver_converges_to_one_video_at_levels_of_ones_own(case: str) -> None:
    driven = DiffusersPipeline(*CASES[case]())
    first, last = driven.own_levels(2)[0], 20.0

    def video(count: int) -> Tensor:
        levels = np.linspace(first, last, count)
        levels = levels if driven.steering.is_flow else np.round(levels)
        return driven.denoise(PROMPT, 3, levels=[float(t) for t in levels]).latents

    fine = video(64)
    errors = [float((video(count) - fine).square().mean()) for count in (8, 32)]
    assert errors[1] < errors[0] / 2


def test_recording_changes_nothing_and_sees_every_boundary(driven: DiffusersPipeline) -> None:
    expected = driven.denoise(PROMPT, 3, STEPS).latents
    assert driven.branches() == 2
    recorder = CalibrationRecorder(STEPS, driven.num_blocks, guidance_scale=3.0)

    def keep(step: StepSeen) -> None:
        recorder.record_denoised(step.index, step.denoised)

    made = driven.denoise(PROMPT, 3, STEPS, watch=recorder, on_step=keep)
    assert torch.equal(made.latents, expected)
    found = recorder.result()
    assert found.block_gram.shape == (STEPS, 2, 3, 3)
    assert np.all(np.isfinite(found.block_gram[2:]))
    assert np.all(found.block_gram[2, 0].diagonal()[1:] > 0)
    denoised = [step.denoised.flatten().double() for step in seen_of(driven, steps=STEPS)]
    by_hand = np.array([[float((a * b).mean()) for b in denoised] for a in denoised])
    assert np.allclose(found.step_gram, by_hand, rtol=1e-6)


def test_recorded_block_changes_equal_those_of_plain_torch_hooks(tiny: Any) -> None:
    """Wan calls its transformer twice a step: the guided change is (1 - w) u + w c."""
    driven = DiffusersPipeline(*tiny["wan"])
    inputs: list[Tensor] = []
    block = driven.transformers["transformer"].blocks[1]
    hook = block.register_forward_pre_hook(lambda _, args: inputs.append(args[0].clone()))
    recorder = CalibrationRecorder(STEPS, 2, guidance_scale=3.0)
    keep = lambda step: recorder.record_denoised(step.index, step.denoised)  # noqa: E731
    driven.denoise(PROMPT, 3, STEPS, watch=recorder, on_step=keep)
    hook.remove()
    change = [(inputs[4 + b] - inputs[2 + b]).double() for b in (0, 1)]  # step 2 less step 1
    found = recorder.result()
    mean = np.mean([float(c.square().mean()) for c in change])
    guided = float((3.0 * change[0] - 2.0 * change[1]).square().mean())
    assert found.block_gram[2, 0, 1, 1] == pytest.approx(mean, rel=1e-5)
    assert found.guided_block_gram[2, 0, 1, 1] == pytest.approx(guided, rel=1e-5)


def test_a_cache_is_applied_and_taken_off_again(driven: DiffusersPipeline) -> None:
    expected = driven.denoise(PROMPT, 3, STEPS).latents
    policy = CachePolicy.four_field(1, 1, 1, 2)
    once = driven.denoise(PROMPT, 3, STEPS, cache=policy).latents
    assert not torch.equal(once, expected)
    assert torch.equal(driven.denoise(PROMPT, 3, STEPS, cache=policy).latents, once)
    assert torch.equal(driven.denoise(PROMPT, 3, STEPS).latents, expected)


def test_what_a_cache_will_hold_is_told_before(family: tuple[Any, dict[str, Any]]) -> None:
    """One branch a call or two at once; against what is held behind each step of a whole video."""
    pipe, arguments = family
    policy = CachePolicy.explicit({3: [(0, 1), (1, 2)]}, STEPS, order=1)
    told = DiffusersPipeline(pipe, arguments).cache_bytes(policy)
    handle = apply_cache(pipe, policy, num_steps=STEPS)
    held: list[int] = []

    def on_step_end(pipe: Any, step: int, timestep: Any, kwargs: Any) -> Any:
        held.append(handle.memory_bytes())
        return handle.on_step_end(pipe, step, timestep, kwargs)

    plain(pipe, {**arguments, "callback_on_step_end": on_step_end})
    handle.remove()
    assert told == max(held) > 0


def test_two_experts_reuse_nothing_of_each_other() -> None:
    driven = DiffusersPipeline(*wan(experts=2))
    levels = (1000.0, 950.0, 800.0, 400.0, 200.0)  # the boundary is at 875
    with pytest.raises(PolicyError, match="step 2 is made by the second transformer and reuses"):
        driven.denoise(PROMPT, 3, levels=levels, cache=CachePolicy.four_field(0, 1, 1, 2))
    driven.denoise(PROMPT, 3, levels=levels, cache=CachePolicy.four_field(0, 1, 0, 2))
    for steps, refused in [((2,), True), ((1, 3), False)]:
        guidance = CachePolicy.explicit({}, len(levels), guidance=GuidancePlan(steps, order=0))
        with pytest.raises(PolicyError, match="step 2") if refused else nullcontext():
            driven.denoise(PROMPT, 3, levels=levels, cache=guidance)


def test_a_video_that_is_broken_off_leaves_nothing_behind(tiny: Any) -> None:
    pipe, arguments = tiny["wan"]
    driven = DiffusersPipeline(pipe, arguments)
    scheduler, expected = pipe.scheduler, driven.denoise(PROMPT, 3, STEPS).latents

    def break_off(step: StepSeen) -> None:
        if step.index == 2:
            raise KeyboardInterrupt

    recorder = CalibrationRecorder(STEPS, driven.num_blocks, guidance_scale=3.0)
    policy = CachePolicy.four_field(1, 1, 1, 2)
    with pytest.raises(KeyboardInterrupt):
        driven.denoise(PROMPT, 3, STEPS, cache=policy, watch=recorder, on_step=break_off)
    assert pipe.scheduler is scheduler
    assert "forward" not in vars(pipe.transformer)
    assert torch.equal(driven.denoise(PROMPT, 3, STEPS).latents, expected)


# --- refusals


def pipeline_class(**parameters: Any) -> Any:
    """Wan's tiny pipeline under a call of another signature."""
    import inspect

    pipe, _ = wan()
    kinds = inspect.Parameter

    def call(self: Any, **given: Any) -> None:
        raise AssertionError("refused before it is called")

    names = ("prompt", "num_inference_steps", "num_frames", "generator", "output_type")
    defaults = dict.fromkeys(names) | {"num_inference_steps": 50} | parameters
    vars(call)["__signature__"] = inspect.Signature(
        [kinds("self", kinds.POSITIONAL_OR_KEYWORD)]
        + [
            kinds(name, kinds.KEYWORD_ONLY, default=default)
            for name, default in defaults.items()
            if default != "gone"
        ]
    )
    pipe.__class__ = type("SomePipeline", (type(pipe),), {"__call__": call})
    return pipe


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ({"num_frames": "gone"}, "takes no num_frames, so it makes no videos"),
        ({"image": None}, "starts from an image"),
        ({"audio_guidance": 1.0}, "makes sound"),
        ({"ar_step": 0}, "autoregressive"),
        ({"num_inference_steps": 8}, r"distilled \(by default 8 steps"),
        ({"generator": "gone"}, "its call takes no generator"),
    ],
)
def test_other_kinds_of_pipelines_are_refused(parameters: dict[str, Any], reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason) as error:
        DiffusersPipeline(pipeline_class(**parameters))
    assert "\n" not in str(error.value)


def test_what_cannot_be_driven_is_refused(tmp_path: Any) -> None:
    pipe, arguments = wan(FlowMatchHeunDiscreteScheduler())
    with pytest.raises(ScheduleError, match="FlowMatchHeunDiscreteScheduler cannot follow"):
        DiffusersPipeline(pipe, arguments)
    pipe, arguments = wan()
    with pytest.raises(OptionError, match=r"takes no argument 'hight'; it takes .*height"):
        DiffusersPipeline(pipe, {"hight": 16})
    with pytest.raises(OptionError, match="latents: osp-opt gives this argument"):
        DiffusersPipeline(pipe, {"latents": None})
    with pytest.raises(OptionError, match=r"WanPipeline refuses its arguments: .*divisible by 16"):
        DiffusersPipeline(pipe, {**arguments, "height": 17}).own_levels(4)
    pipe.vae = None
    with pytest.raises(CheckpointError, match="WanPipeline: vae is missing"):
        DiffusersPipeline(pipe, arguments)
    with pytest.raises(CheckpointError, match=r"holds no model_index\.json"):
        open_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="names no pipeline class"):
        open_pipeline(tmp_path)


@pytest.mark.parametrize(
    ("levels", "reason"),
    [
        ((500.0, 900.0), "must strictly descend"),
        ((1001.0, 500.0), r"must lie in \[0, 1000\]"),
        ((1000.0, 0.0), "the last level is 0"),
        ((), "it is empty"),
    ],
)
def test_levels_that_are_none_are_refused(tiny: Any, levels: Any, reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        DiffusersPipeline(*tiny["wan"]).denoise(PROMPT, 3, levels=levels)


def test_a_transformer_without_registered_blocks_is_refused() -> None:
    pipe, arguments = wan()
    pipe.transformer.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    with pytest.raises(CheckpointError, match="no list of blocks that diffusers has registered"):
        DiffusersPipeline(pipe, arguments)


def test_a_saved_pipeline_opens_again(tmp_path: Any) -> None:
    pytest.importorskip("accelerate")  # without it diffusers loads no Wan
    pipe, arguments = FAMILIES["wan"]()
    pipe.save_pretrained(tmp_path)
    driven = open_pipeline(tmp_path, arguments=arguments)
    expected = plain(driven.pipe, arguments)
    assert torch.equal(driven.denoise(PROMPT, 3, STEPS).latents, expected)
    assert torch.allclose(expected, plain(pipe, arguments), atol=1e-4)
