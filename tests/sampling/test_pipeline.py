"""What the pipeline refuses, and what caches, recorders and noise do in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import (
    EulerAncestralDiscreteScheduler,
)
from torch import Tensor

from osp_opt.base.errors import OptionError, OspOptError, ScheduleError, ShapeError
from osp_opt.base.shape import VideoShape
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.model.release import load_transformer
from osp_opt.model.text.encoder import load_text_encoder, load_tokenizer
from osp_opt.sampling.latents import sample_latents
from osp_opt.sampling.noise import CoupledNoise, make_noise
from osp_opt.sampling.pipeline import OpenSoraPlanPipeline, PromptEmbeddings
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import SAMPLERS, make_scheduler

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPE = VideoShape(5, 16, 32)
LATENT = SHAPE.latent_tensor()
STEPS = TimestepSchedule.uniform(4)


@pytest.fixture(scope="module")
def pipe() -> OpenSoraPlanPipeline:
    pipeline = OpenSoraPlanPipeline(
        load_tokenizer(GOLDEN / "pipeline" / "text_encoder"),
        load_text_encoder(GOLDEN / "pipeline" / "text_encoder"),
        None,
        load_transformer(GOLDEN / "transformer" / "main"),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def cat(pipe: OpenSoraPlanPipeline) -> PromptEmbeddings:
    return pipe.encode_prompts(["a cat"], "blurry", 16)


def generate(pipe: OpenSoraPlanPipeline, text: PromptEmbeddings, **changes: Any) -> Tensor:
    arguments: dict[str, Any] = {
        "schedule": STEPS,
        "noise": CoupledNoise(1, "a cat", LATENT),
        "guidance_scale": 3.0,
        **changes,
    }
    schedule, noise = arguments.pop("schedule"), arguments.pop("noise")
    return sample_latents(pipe.transformer, text, SHAPE, schedule, noise, **arguments)


def test_videos_of_a_batch_are_those_made_alone(pipe: OpenSoraPlanPipeline) -> None:
    prompts, seeds = ["a cat", "a dog on a red ball"], [1, 7]
    both = generate(
        pipe,
        pipe.encode_prompts(prompts, "blurry", 16),
        noise=make_noise("coupled", seeds, prompts, LATENT),
    )
    for i in range(2):
        alone = generate(
            pipe,
            pipe.encode_prompts(prompts[i : i + 1], "blurry", 16),
            noise=make_noise("coupled", seeds[i : i + 1], prompts[i : i + 1], LATENT),
        )
        torch.testing.assert_close(both[i : i + 1], alone, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs(pipe: OpenSoraPlanPipeline, cat: PromptEmbeddings, name: str) -> None:
    seen: list[tuple[int, int]] = []
    latents = generate(
        pipe, cat, sampler=name, callback=lambda done, total: seen.append((done, total))
    )
    assert latents.shape == (1, *LATENT)
    assert latents.dtype == torch.float32
    total = seen[0][1]
    assert seen == [(i + 1, total) for i in range(total)]


def test_a_schedule_that_the_sampler_cannot_follow_is_refused(
    pipe: OpenSoraPlanPipeline, cat: PromptEmbeddings
) -> None:
    schedule = TimestepSchedule((999.0, 400.0, 0.0))
    with pytest.raises(ScheduleError, match="PNDM"):
        generate(pipe, cat, sampler="PNDM", schedule=schedule)


def test_a_scheduler_of_diffusers_own_is_taken(
    pipe: OpenSoraPlanPipeline, cat: PromptEmbeddings
) -> None:
    named = generate(pipe, cat, sampler="DDIM")
    given = generate(pipe, cat, sampler=DDIMScheduler(clip_sample=False))
    assert torch.equal(named, given)
    plain = generate(pipe, cat)
    assert torch.equal(plain, generate(pipe, cat, sampler=EulerAncestralDiscreteScheduler()))
    other = generate(
        pipe, cat, sampler=EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012)
    )
    assert float((plain - other).abs().max()) > 0.1


def test_default_sampler_equals_the_scheduler_class(
    pipe: OpenSoraPlanPipeline, cat: PromptEmbeddings
) -> None:
    """Our formulas against diffusers' Euler ancestral class with the same coupled noise."""
    ours = generate(pipe, cat)
    scheduler = make_scheduler("EulerAncestralDiscrete")
    scheduler.register_to_config(steps_offset=1)  # unused by this spacing, but no longer stock
    theirs = generate(pipe, cat, sampler=scheduler)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-3)


def test_no_guidance_ignores_the_negative_prompt(
    pipe: OpenSoraPlanPipeline, cat: PromptEmbeddings
) -> None:
    positive_only = PromptEmbeddings(cat.embeds, cat.mask)
    plain = generate(pipe, positive_only, guidance_scale=1.0)
    assert torch.equal(plain, generate(pipe, cat, guidance_scale=1.0))
    with pytest.raises(OptionError, match="negative prompt"):
        generate(pipe, positive_only)


@pytest.mark.parametrize("sequential", [False, True])
def test_cache_and_recorder_see_every_step(
    pipe: OpenSoraPlanPipeline, cat: PromptEmbeddings, sequential: bool
) -> None:
    plain = generate(pipe, cat, sequential_guidance=sequential)
    recorder = CalibrationRecorder(4, 4, guidance_scale=3.0)
    recorded = generate(pipe, cat, recorder=recorder, sequential_guidance=sequential)
    assert torch.equal(plain, recorded)
    statistics = recorder.result()
    # the last denoised prediction is the result
    assert statistics.step_gram[-1, -1] == pytest.approx(float(plain.square().mean()), rel=1e-4)

    cache = BlockCache(CachePolicy.four_field(1, 2, 1, 2))
    cached = generate(pipe, cat, cache=cache, sequential_guidance=sequential)
    assert float((cached - plain).abs().max()) > 1e-3
    cache.reset()
    again = generate(pipe, cat, cache=cache, sequential_guidance=not sequential)
    torch.testing.assert_close(again, cached, rtol=0, atol=1e-3)
    with pytest.raises(OptionError, match="either cache or recorder"):
        generate(pipe, cat, cache=cache, recorder=recorder)


@pytest.mark.parametrize("name", ["DDIM", "HeunDiscrete"])
def test_recording_other_samplers(
    pipe: OpenSoraPlanPipeline, cat: PromptEmbeddings, name: str
) -> None:
    calls = 4 if name == "DDIM" else 7
    recorder = CalibrationRecorder(calls, 4, guidance_scale=3.0)
    generate(pipe, cat, sampler=name, recorder=recorder)
    gram = recorder.result().step_gram
    assert gram.shape == (calls, calls)
    assert bool((torch.as_tensor(gram).diagonal() > 0).all())


def test_latents_that_are_not_finite_raise(
    pipe: OpenSoraPlanPipeline, cat: PromptEmbeddings
) -> None:
    bad = torch.randn(1, *LATENT)
    bad[0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(OspOptError, match="NaN"):
        generate(pipe, cat, latents=bad)
    with pytest.raises(OptionError, match="NaN"):
        pipe("a cat", num_frames=5, height=16, width=32, latents=bad)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_frames": 6}, ShapeError, "num_frames is 6"),
        ({"height": 24}, ShapeError, "height is 24"),
        ({"latents": torch.zeros(1, 4, 3, 2, 4)}, ShapeError, r"needs \(1, 4, 2, 2, 4\)"),
        ({"prompt": None}, OptionError, "give a prompt"),
        ({"output_type": "gif"}, OptionError, "output_type is 'gif'"),
        ({"timesteps": [10.0, 20.0]}, ScheduleError, "strictly descend"),
        ({"timesteps": [10.0], "schedule": STEPS}, OptionError, "exclude each other"),
        ({"noise": "pink"}, OptionError, "coupled or independent"),
        ({"device": "cuda"}, OptionError, "device=cuda"),
        ({"mask_feature": False}, OptionError, "mask_feature=False"),
        ({"prompt_embeds": torch.zeros(1, 3, 32)}, OptionError, "belong together"),
    ],
)
def test_wrong_calls_are_refused(
    pipe: OpenSoraPlanPipeline, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    call: dict[str, Any] = {
        "prompt": "a cat",
        "num_frames": 5,
        "height": 16,
        "width": 32,
        "num_inference_steps": 2,
        "output_type": "latent",
        "max_sequence_length": 16,
        **changes,
    }
    with pytest.raises(error, match=message):
        pipe(**call)


def test_seeds_prompts_and_copies_are_told_apart(pipe: OpenSoraPlanPipeline) -> None:
    call: dict[str, Any] = {
        "num_frames": 5,
        "height": 16,
        "width": 32,
        "num_inference_steps": 2,
        "output_type": "latent",
        "max_sequence_length": 16,
    }
    first = pipe("a cat", seed=3, **call).videos
    assert torch.equal(first, pipe("a cat", seed=3, **call).videos)
    copies = pipe("a cat", seed=2, num_images_per_prompt=2, **call).videos
    torch.testing.assert_close(copies[1:], first, rtol=0, atol=1e-3)
    assert float((copies[0] - copies[1]).abs().max()) > 0.1
    assert not torch.equal(first, pipe("a cat", seed=3, noise="independent", **call).videos)


def test_shape_defaults_to_what_the_model_was_trained_for(pipe: OpenSoraPlanPipeline) -> None:
    result = pipe("a cat", num_inference_steps=1, output_type="latent", max_sequence_length=16)
    assert result.videos.shape == (1, 4, 8, 8, 10)  # golden main: 29x64x80


def test_a_released_text_encoder_is_missed_by_name(pipe: OpenSoraPlanPipeline) -> None:
    bare = OpenSoraPlanPipeline(None, None, None, pipe.transformer)
    with pytest.raises(OptionError, match="prompt_embeds"):
        bare.encode_prompts(["a cat"], "", 16)
