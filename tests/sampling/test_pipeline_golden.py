"""The three golden runs of the official pipeline, step by step, with tolerances of index.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch._dynamo.utils import counters

from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.model.release import load_transformer, load_vae
from osp_opt.model.text.encoder import load_text_encoder, load_tokenizer
from osp_opt.sampling.pipeline import OpenSoraPlanPipeline
from osp_opt.sampling.schedule import TimestepSchedule

GOLDEN = Path(__file__).parents[1] / "golden"
FILES = {f["path"]: f for f in json.loads((GOLDEN / "index.json").read_text())["files"]}
INIT_NOISE_SIGMA = 157.4073
LATENTS_ATOL = 2e-5 * INIT_NOISE_SIGMA
MODEL_OUTPUT_ATOL = 1e-4


@pytest.fixture(scope="module", params=["three projections", "fused projections"])
def pipe(request: pytest.FixtureRequest) -> OpenSoraPlanPipeline:
    pipeline = OpenSoraPlanPipeline(
        load_tokenizer(GOLDEN / "pipeline" / "text_encoder"),
        load_text_encoder(GOLDEN / "pipeline" / "text_encoder"),
        load_vae(GOLDEN / "vae" / "d4_4x8x8"),
        load_transformer(GOLDEN / "transformer" / "main"),
    )
    pipeline.set_progress_bar_config(disable=True)
    if request.param == "fused projections":
        pipeline.transformer.fuse_qkv_projections()
    return pipeline


class Watched:
    """A golden run: what is compared at each step is compared while it is sampled."""

    def __init__(self, name: str) -> None:
        path = f"pipeline/{name}.safetensors"
        self.data = load_file(GOLDEN / path)
        self.call: dict[str, Any] = dict(FILES[path]["call"])
        self.generator = torch.Generator().manual_seed(FILES[path]["generator_seed"])
        self.x = self.data["out.latents_before_first_step"]
        self.seen = 0

    def callback(self, step: int, timestep: float, latents: Tensor) -> None:
        assert timestep == pytest.approx(float(self.data["out.timesteps"][step]), abs=1e-3)
        want = self.data["out.latents_after_step"][step]
        torch.testing.assert_close(latents, want, rtol=0, atol=LATENTS_ATOL)
        # the step is linear in eps: recover what the network gave after guidance
        a, b = (float(s) for s in self.data["out.sigmas"][step : step + 2])
        noise = self.data["in.step_noise"][step]
        mean = latents - b * (1 - (b / a) ** 2) ** 0.5 * noise
        eps = (self.x - mean) / (a * (1 - (b / a) ** 2))
        want_eps = self.data["out.model_output_after_cfg"][step]
        # latents of size 600 in float32 resolve eps to 6e-5 / a of their own
        resolution = 4 * float(self.x.abs().max()) * 2**-23 / (a - b * b / a)
        torch.testing.assert_close(eps, want_eps, rtol=0, atol=MODEL_OUTPUT_ATOL + resolution)
        self.x = latents
        self.seen += 1

    def check_video(self, video: Tensor) -> None:
        want = self.data["out.video_uint8_bthwc"]
        assert video.dtype == torch.uint8
        assert video.shape == want.shape
        difference = (video.int() - want.int()).abs()
        assert int(difference.max()) <= 1
        assert float((difference > 0).float().mean()) < 1e-3
        assert self.seen == len(self.data["out.timesteps"])


@pytest.mark.parametrize("name", ["run1_default10", "run2_custom_timesteps"])
def test_text_to_video(pipe: OpenSoraPlanPipeline, name: str) -> None:
    run = Watched(name)
    run.check_video(pipe(**run.call, generator=run.generator, callback=run.callback).images)


def test_guidance_branches_in_turn(pipe: OpenSoraPlanPipeline) -> None:
    run = Watched("run2_custom_timesteps")
    output = pipe(
        **run.call,
        generator=run.generator,
        callback=run.callback,
        sequential_guidance=True,
        output_type="latent",
    )
    assert run.seen == 10
    assert torch.equal(output.videos, run.x)


def test_compiled_blocks_follow_a_searched_schedule_and_a_cache(
    pipe: OpenSoraPlanPipeline, request: pytest.FixtureRequest
) -> None:
    """The golden run on a searched schedule, then one with a cache, against the eager blocks."""
    if "three" in request.node.name:
        pytest.skip("compiling takes long: with fused projections only")
    policy = CachePolicy.four_field(1, 2, 1, 2)
    torch.compiler.reset()
    eager = pipe.transformer
    cached = Watched("run2_custom_timesteps")
    call = {**cached.call, "output_type": "latent", "seed": 3}
    expected = pipe(**call, cache=BlockCache(policy)).videos
    compiled = load_transformer(GOLDEN / "transformer" / "main").requires_grad_(False)
    compiled.fuse_qkv_projections()
    compiled.compile_repeated_blocks(fullgraph=True)
    pipe.transformer = compiled
    try:
        before = counters["stats"]["unique_graphs"]
        run = Watched("run2_custom_timesteps")
        pipe(**run.call, generator=run.generator, callback=run.callback, output_type="latent")
        assert run.seen == 10
        found = pipe(**call, cache=BlockCache(policy)).videos
        assert counters["stats"]["unique_graphs"] - before == 1, "one graph for all blocks"
    finally:
        pipe.transformer = eager
        torch.compiler.reset()
    torch.testing.assert_close(found, expected, rtol=0, atol=LATENTS_ATOL)
    assert not torch.allclose(expected, pipe(**call).videos, rtol=0, atol=LATENTS_ATOL)


def test_schedule_file_is_the_same_as_its_timesteps(pipe: OpenSoraPlanPipeline) -> None:
    run = Watched("run2_custom_timesteps")
    del run.call["timesteps"]
    schedule = GOLDEN / "pipeline" / "schedule_timestep.txt"
    (latents,) = pipe(
        **run.call,
        schedule=schedule,
        generator=run.generator,
        callback=run.callback,
        output_type="latent",
        return_dict=False,
    )
    assert torch.equal(latents, run.x)
    assert list(TimestepSchedule.from_file(schedule).timesteps) == pytest.approx(
        run.data["out.timesteps"].tolist(), abs=1e-9
    )


def test_images_from_embeddings(pipe: OpenSoraPlanPipeline) -> None:
    run = Watched("run3_image_embeds")
    given = {key.removeprefix("in."): value for key, value in run.data.items() if key[:3] == "in."}
    del given["step_noise"]
    run.call.pop("prompt")
    run.call.pop("negative_prompt")
    run.check_video(
        pipe(**run.call, **given, generator=run.generator, callback=run.callback).videos
    )


def test_embeddings_are_the_official_ones(pipe: OpenSoraPlanPipeline) -> None:
    run = Watched("run1_default10")
    found = pipe.encode_prompts([run.call["prompt"]], run.call["negative_prompt"], 300)
    assert found.negative is not None
    both = torch.cat([found.negative[0], found.embeds])[:, None]
    torch.testing.assert_close(both, run.data["out.encoder_hidden_states"], rtol=0, atol=1e-5)
    masks = torch.cat([found.negative[1], found.mask])[:, None]
    assert torch.equal(masks, run.data["out.encoder_attention_mask"])
