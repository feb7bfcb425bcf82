"""The speed benchmark measures what it says: the same function, and operations counted rightly."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from math import inf
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks is not part of the package

from benchmarks.speed import attention, checkpoint, full_size, predict, scaling, vae
from benchmarks.speed.measuring import interleaved, ratio
from benchmarks.speed.operations import StepWork
from benchmarks.speed.steps import optimised, original
from benchmarks.speed.subjects import SMALL, Subject, random_prompts, random_transformer
from osp_opt.base.shape import VideoShape
from osp_opt.options import SamplingOptions
from osp_opt.pipelines.load import load_pipeline
from osp_opt.system.device import Device

SHAPE = VideoShape(13, 48, 64)  # 4 x 6 x 8 latents: 48 tokens


@pytest.fixture(scope="module")
def device() -> Device:
    return Device.open("cpu", dtype="float32")


@pytest.fixture(scope="module")
def subject(device: Device) -> Subject:
    model = random_transformer(SMALL, SHAPE, device)
    channels = int(SMALL["caption_channels"])
    return Subject("small", model, random_prompts(channels, 20, 32, device), SHAPE)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_the_original_written_out_computes_the_same_step(subject: Subject) -> None:
    ours, theirs = optimised(subject)(), original(subject)()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (ours - subject.latents(0)).abs().max() > 0.1


@pytest.mark.parametrize("fused", [False, True])
def test_operations_are_those_that_torch_counts(subject: Subject, fused: bool) -> None:
    model, prompts = subject.model, subject.prompts
    (model.fuse_qkv_projections if fused else model.unfuse_qkv_projections)()
    model.set_attention_backend("_native_math")  # whose two products the counter sees
    text = model.encode_text(prompts.embeds, prompts.mask)
    (time,) = model.encode_timesteps([500.5])
    latents = torch.zeros(2, *SHAPE.latent_tensor())
    try:
        model(latents, time, text=text)  # a prompt's and a schedule's own work is done at the first
        with FlopCounterMode(display=False) as counter:
            model(latents, time, text=text)
    finally:
        model.reset_attention_backend()
    work = StepWork.of(model.config, SHAPE.latent(), prompts.longest)
    assert work.tokens == 48
    assert counter.get_total_flops() == work.total


def test_full_size_step_is_about_the_published_work() -> None:
    """Arithmetic of the facts sheet: 28,800 tokens, about 0.8 PFLOP per guided step at 29x720p."""
    shape = full_size.SHAPES["29x720p"]
    work = StepWork.of(predict.released_config(), shape.latent(), full_size.TEXT_TOKENS)
    assert work.tokens == 28_800
    assert work.total == pytest.approx(0.8e15, rel=0.06)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_transformer_sends_no_more_than_ulysses_needs(device: Device, ranks: int) -> None:
    counted = scaling.communication(device, ranks)
    assert counted["exchanged_elements"] == counted["least_elements"] > 0
    assert counted["gathered_elements"] == counted["least_gathered_elements"] > 0


def test_the_full_size_script_runs_from_end_to_end(device: Device) -> None:
    result = full_size.run([], full_size.Rounds(1, 1), True, False, device)
    assert result["toy_model"]
    for name, shape in result["shapes"].items():
        steps = shape["steps"]
        assert set(steps) == {"exact", "cache: full step", "cache: reusing step", "recorded"}, name
        assert all(step["median_seconds"] > 0 for step in steps.values())
        assert shape["operations_per_step"] > 0
        assert {"encode", "decode", "decode_peak_bytes"} == set(shape["autoencoder"])


def test_a_checkpoint_of_random_weights_can_be_sampled(device: Device, tmp_path: Path) -> None:
    checkpoint.write(tmp_path, "29x480p", VideoShape(5, 16, 16), small=True)
    found = load_pipeline(SamplingOptions(model_path=str(tmp_path), version="29x480p"), device)
    assert (found.defaults.num_frames, found.defaults.height) == (5, 16)
    videos = found.pipeline("a kite", num_inference_steps=2, num_frames=5, height=16, width=16)
    assert videos.videos.float().std() > 0


def test_ways_of_decoding_are_held_against_float32(device: Device) -> None:
    ways = json.loads(json.dumps(vae.run(1, device, VideoShape(5, 32, 32)), allow_nan=False))[
        "ways"
    ]
    assert ways["float32"]["psnr_db"] is None
    assert (ways["float32, channels last"]["psnr_db"] or inf) > ways["bfloat16"]["psnr_db"] > 50


def test_kernels_are_held_against_float32(device: Device) -> None:
    found = attention.run(["1x480p"], 1, device, tokens=64)["sizes"]["1x480p"]
    assert found["backends"]["native"]["error"] < 1e-6
    assert {*found["backends"], *found["refused"]} == set(attention.BACKENDS)
    q, k, v = torch.randn(3, 1, 8, 2, 4, generator=torch.Generator().manual_seed(0))
    assert attention.error(v, q, k, v) > 0.1, "not attention"


def test_a_size_is_measured(device: Device) -> None:
    point = scaling.measure((5, 32, 32), repeats=1)
    assert point["tokens"] == 2 * 2 * 2
    points = [{"tokens": n, "seconds": 3.0 * n**2} for n in (10, 100, 1000)]
    assert scaling.exponents(points, "seconds") == pytest.approx([2.0, 2.0])


def test_ratios_are_of_neighbouring_runs(device: Device) -> None:
    order: list[str] = []
    actions = {name: lambda name=name: order.append(name) for name in ("a", "b")}
    times = interleaved(actions, device, repeats=2, warm_ups=1)
    assert order == ["a", "b"] * 3
    assert len(times["a"].wall) == 2
    assert ratio(times["a"], times["a"]) == 1.0


def test_more_devices_split_the_work_before_they_make_more_videos() -> None:
    shape = full_size.SHAPES["29x720p"]
    one, eight, many = (predict.step_seconds(shape, n, 4e14, 3e11) for n in (1, 8, 64))
    assert (one["layout"], one["communication_seconds"]) == ("dp=1,cfg=1,sp=1", 0.0)
    assert eight["layout"] == "dp=1,cfg=2,sp=4"
    assert eight["compute_seconds"] == pytest.approx(one["compute_seconds"] / 8)
    assert many["videos_at_once"] * 2 * 24 >= 48
    assert many["step_seconds"] <= eight["step_seconds"]
