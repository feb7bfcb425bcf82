"""The pipeline as users of diffusers know it: saved, derived, offloaded, called back, answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
from PIL import Image
from torch import Tensor

from osp_opt.base.errors import CheckpointError, InputError, OptionError, PolicyError
from osp_opt.cache.hooks import apply_cache
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.sampling.latents import decode_videos
from osp_opt.sampling.pipeline import OpenSoraPlanPipeline
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.sampling.schedulers import make_scheduler
from osp_opt.tiny.prompts import BUNDLED

CALL: dict[str, Any] = {"num_inference_steps": 3, "seed": 5, "output_type": "latent"}


@pytest.fixture
def pipe(tiny_checkpoint: Path) -> OpenSoraPlanPipeline:
    pipeline = OpenSoraPlanPipeline.from_pretrained(tiny_checkpoint)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def latents(pipeline: OpenSoraPlanPipeline, prompt: Any = "a red ball", **more: Any) -> Tensor:
    return pipeline(prompt, **(CALL | more)).frames


def test_saved_loaded_and_derived_pipelines_make_the_same_video(
    pipe: OpenSoraPlanPipeline, tmp_path: Path
) -> None:
    pipe.scheduler = make_scheduler("DDIM")
    expected = latents(pipe)
    pipe.save_pretrained(tmp_path)
    saved = OpenSoraPlanPipeline.from_pretrained(tmp_path)
    again = OpenSoraPlanPipeline(**pipe.components, defaults=pipe.defaults)
    derived = OpenSoraPlanPipeline.from_pipe(pipe)
    for other in (saved, again, derived):
        other.set_progress_bar_config(disable=True)
        assert type(other.scheduler) is type(pipe.scheduler)
        assert other.defaults == pipe.defaults
        torch.testing.assert_close(latents(other), expected, atol=1e-5, rtol=0)
    assert latents(saved, "byte \u6f22 pieces <unk>").shape == expected.shape
    assert set(pipe.components) == {
        "tokenizer", "text_encoder", "vae", "transformer", "scheduler"
    }  # fmt: skip


def test_from_pretrained_reads_the_official_layout_and_the_bundled_model(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    official = tmp_path / "official"
    official.mkdir()
    (official / "29x480p").symlink_to(tiny_checkpoint / "transformer")
    (official / "vae").symlink_to(tiny_checkpoint / "vae")
    text = str(tiny_checkpoint / "text_encoder")
    found = OpenSoraPlanPipeline.from_pretrained(
        official, version="29x480p", text_encoder_name=text, dtype=torch.bfloat16
    )
    assert found.transformer.dtype == found.vae.dtype == torch.bfloat16
    assert found.defaults.guidance_scale == 7.5
    assert "masterpiece" in found.defaults.prompt_template
    bundled = OpenSoraPlanPipeline.from_pretrained()
    assert bundled.defaults.guidance_scale == json.loads(
        (BUNDLED / "defaults.json").read_text()
    )["guidance_scale"]  # fmt: skip
    with pytest.raises(CheckpointError, match="variant is for pipelines"):
        OpenSoraPlanPipeline.from_pretrained(official, version="29x480p", variant="fp16")
    with pytest.raises(OptionError, match="torch_dtype is 'auto'"):
        OpenSoraPlanPipeline.from_pretrained(torch_dtype="auto")


def test_output_types(pipe: OpenSoraPlanPipeline) -> None:
    made = {
        kind: pipe("a ball", num_inference_steps=1, output_type=kind).frames
        for kind in ("uint8", "np", "pt", "pil", "latent")
    }
    assert made["uint8"].shape == made["np"].shape == (1, 5, 16, 16, 3)
    assert made["pt"].shape == (1, 5, 3, 16, 16)
    assert np.array_equal(made["np"].transpose(0, 1, 4, 2, 3), made["pt"].numpy())
    assert isinstance(made["pil"][0][4], Image.Image)
    assert np.array_equal(np.stack([np.asarray(f) for f in made["pil"][0]]), made["uint8"][0])
    assert made["latent"].shape == (1, 4, 2, 2, 2)
    output = pipe("a ball", num_inference_steps=1)
    assert output.videos is output.images is output.frames
    assert torch.equal(output[0], made["uint8"])


def test_videos_of_a_prompt_and_prompts_that_are_one_to_the_model(
    pipe: OpenSoraPlanPipeline,
) -> None:
    two = latents(pipe, "a red dog", num_videos_per_prompt=2)
    assert not torch.equal(two[0], two[1])
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(latents(pipe, ["a red dog", "A  red dog "]), two, **close)
    for spelling in ("A Red Dog", " a red dog"):
        torch.testing.assert_close(latents(pipe, spelling), two[:1], **close)
    torch.testing.assert_close(latents(pipe, "a red dog", seed=6), two[1:], **close)
    # wherever it stands in a list
    torch.testing.assert_close(latents(pipe, ["a cat", "a red dog"])[1:], two[:1], **close)


def test_embeddings_in_place_of_prompts(pipe: OpenSoraPlanPipeline) -> None:
    names = (
        "prompt_embeds",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "negative_prompt_attention_mask",
    )
    prompts = ["a red dog", "a cat"]
    encoded = dict(zip(names, pipe.encode_prompt(prompts), strict=True))
    start = torch.randn(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(0))

    def sampled(**given: Any) -> Tensor:
        draw = torch.Generator().manual_seed(1)
        return pipe(**given, **CALL, latents=start, generator=draw).frames

    assert torch.equal(sampled(**encoded), sampled(prompt=prompts))
    alike = {name: tensor[:1].repeat(2, 1, 1)[..., : tensor.shape[-1]] if tensor.ndim == 3
             else tensor[:1].repeat(2, 1) for name, tensor in encoded.items()}  # fmt: skip
    one, other = pipe(**alike, **CALL).frames
    assert not torch.equal(one, other)  # two videos of one prompt


def test_negative_prompts(pipe: OpenSoraPlanPipeline) -> None:
    own = latents(pipe)
    assert torch.equal(latents(pipe, negative_prompt=None), own)
    assert torch.equal(latents(pipe, negative_prompt=pipe.defaults.negative_prompt), own)
    assert not torch.equal(latents(pipe, negative_prompt="a cat"), own)
    both = latents(pipe, ["a", "b"], negative_prompt=["x", "y"])
    alone = latents(pipe, "b", negative_prompt="y")
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=0)
    with pytest.raises(OptionError, match="3 negative prompts for 2 prompts"):
        latents(pipe, ["a", "b"], negative_prompt=["x", "y", "z"])


def test_files_are_taken_as_well_as_objects(pipe: OpenSoraPlanPipeline, tmp_path: Path) -> None:
    schedule = TimestepSchedule((999.0, 700.5, 300.0, 20.0))
    policy = CachePolicy.four_field(1, 2, 0, 2)
    schedule.save(tmp_path / "searched_schedule.txt")
    policy.save(tmp_path / "dit_cache_config.json")
    expected = latents(pipe, schedule=schedule, cache=BlockCache(policy))
    files = {
        "schedule": str(tmp_path / "searched_schedule.txt"),
        "cache": tmp_path / "dit_cache_config.json",
    }
    torch.testing.assert_close(latents(pipe, **files), expected, atol=1e-4, rtol=0)
    used = BlockCache(policy)
    for _ in range(2):  # it need not be reset between videos
        assert torch.equal(latents(pipe, schedule=schedule, cache=used), expected)
    assert not torch.equal(latents(pipe, schedule=schedule), expected)
    assert pipe.cache_bytes(files["cache"]) == used.memory_bytes() > 0
    with pytest.raises(PolicyError, match="beyond the model's 4 blocks"):
        latents(pipe, cache=CachePolicy.four_field(3, 2, 0, 2))


def test_the_callback_sees_and_changes_tensors(pipe: OpenSoraPlanPipeline) -> None:
    seen: list[tuple[int, float, list[str]]] = []

    def watch(at: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        assert at.current_timestep == timestep
        seen.append((step, timestep, sorted(tensors)))
        return tensors

    def zero(at: Any, step: int, timestep: float, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    def other_prompt(at: Any, step: int, t: float, tensors: dict[str, Tensor]) -> Any:
        return {"prompt_embeds": tensors["prompt_embeds"] * 3}

    def more_guidance(at: Any, step: int, t: float, tensors: dict[str, Tensor]) -> None:
        at._guidance_scale += 1.0

    def stop(at: Any, step: int, t: float, tensors: dict[str, Tensor]) -> None:
        seen.append((step, t, []))
        at._interrupt = True

    plain = latents(pipe)
    names = ["latents", "prompt_embeds"]
    told = {"callback_on_step_end_tensor_inputs": names}
    assert torch.equal(latents(pipe, callback_on_step_end=watch, **told), plain)
    assert [step for step, *_ in seen] == [0, 1, 2]
    assert seen[0][2] == names
    assert pipe.num_timesteps == 3
    assert not latents(pipe, callback_on_step_end=zero).any()
    assert not torch.equal(latents(pipe, callback_on_step_end=other_prompt, **told), plain)
    assert not torch.equal(latents(pipe, callback_on_step_end=more_guidance), plain)
    assert pipe.guidance_scale == pipe.defaults.guidance_scale + 3
    seen.clear()
    latents(pipe, callback_on_step_end=stop)
    assert len(seen) == 1
    with pytest.raises(OptionError, match="names 'noise'"):
        latents(pipe, callback_on_step_end_tensor_inputs=["noise"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": ["a", 3]}, "prompt is"),
        ({"negative_prompt": 3}, "negative_prompt is 3"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt is 0"),
        ({"num_images_per_prompt": 1.5}, "must be a whole number"),
        ({"num_inference_steps": 2.5}, "must be a whole number"),
        ({"height": "16"}, "height is '16'"),
        ({"guidance_scale": float("nan")}, "must be a finite number"),
        ({"guidance_scale": "2"}, "must be a finite number"),
        ({"seed": "x"}, "seed is 'x'"),
        ({"generator": 7}, "must be a torch.Generator"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1 videos"),
        ({"callback_on_step_end": "x"}, "must be a function"),
        ({"cache": {}}, "must be a policy, its file, or a cache"),
        ({"schedule": [999.0, 0.0]}, "must be a schedule or its file"),
        ({"recipe": 5}, "must be a Recipe or its file"),
        ({"timesteps": "abc"}, "must be a list of numbers"),
        ({"cache": CachePolicy.four_field(1, 2, 0, 2), "num_inference_steps": 1}, "run without"),
    ],
)
def test_a_wrong_argument_is_named_before_any_work(
    pipe: OpenSoraPlanPipeline, arguments: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError, match=words) as found:
        latents(pipe, **arguments)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("branches", ["together", "in turn"])
@pytest.mark.parametrize("kind", ["first block", "taylor", "mag"])
def test_caches_of_diffusers_run_in_the_pipeline(
    pipe: OpenSoraPlanPipeline, kind: str, branches: str
) -> None:
    """One that never fires changes nothing; with mixed branches it would."""
    call = {"sequential_guidance": branches == "in turn"}
    plain = latents(pipe, **call)
    config: Any = {
        "first block": FirstBlockCacheConfig(threshold=0.0),
        "taylor": TaylorSeerCacheConfig(disable_cache_before_step=3),
        "mag": MagCacheConfig(num_inference_steps=3, mag_ratios=[1.0] * 3, retention_ratio=1.0),
    }[kind]
    pipe.transformer.enable_cache(config)
    assert torch.equal(latents(pipe, **call), plain)
    pipe.transformer.disable_cache()
    assert torch.equal(latents(pipe, **call), plain)


@pytest.mark.parametrize("how", ["as a whole", "block by block"])
def test_a_compiled_transformer_caches_and_is_compiled_once(
    pipe: OpenSoraPlanPipeline, how: str
) -> None:
    """Eager, which only shows what torch.compile is given; a video more must add nothing to it."""
    policy = CachePolicy.four_field(1, 2, 0, 2)
    graphs: list[torch.fx.GraphModule] = []

    def eager(graph: torch.fx.GraphModule, _inputs: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def videos() -> list[Tensor]:
        made = [latents(pipe), latents(pipe, cache=policy)]
        if how == "block by block":  # hooks between the blocks
            handle = apply_cache(pipe.transformer, policy, num_steps=3)
            made.append(latents(pipe, callback_on_step_end=handle.on_step_end))
            handle.remove()
        return made

    expected = videos()
    blocks = list(pipe.transformer.transformer_blocks)
    for part in [pipe.transformer] if how == "as a whole" else blocks:
        part.compile(backend=eager)
    compiled = []
    for _ in range(2):
        torch.testing.assert_close(videos(), expected, atol=1e-4, rtol=0)
        compiled.append(len(graphs))
    assert compiled[0] == compiled[1]
    blocks_compiled = [graph for graph in graphs if "scaled_dot_product" in graph.code]
    assert len(blocks_compiled) < len(blocks)  # one for all, and not one for each step
    torch.compiler.reset()


def test_a_scheduler_that_predicts_something_else_is_refused(pipe: OpenSoraPlanPipeline) -> None:
    scheduler = make_scheduler("EulerDiscrete")
    pipe.scheduler = type(scheduler).from_config(scheduler.config, prediction_type="v_prediction")
    with pytest.raises(OptionError, match="prediction_type 'v_prediction'"):
        latents(pipe)


class TestOffloading:
    """With accelerate; "meta" stands for a second device, whose values nobody can look at."""

    @pytest.fixture(autouse=True)
    def needs_accelerate(self) -> None:
        pytest.importorskip("accelerate")

    def test_sequential_offload_runs_on_the_other_device(self, pipe: OpenSoraPlanPipeline) -> None:
        from accelerate import cpu_offload

        names = ("prompt_embeds", "prompt_attention_mask")
        encoded = dict(zip(names, pipe.encode_prompt("a ball"), strict=False))
        for part in (pipe.transformer, pipe.vae):
            cpu_offload(part, torch.device("meta"), offload_buffers=True)
        made = pipe(**encoded, guidance_scale=1.0, output_type="latent", num_inference_steps=2)
        assert made.frames.device.type == "meta"
        decoded = list(decode_videos(pipe.vae, torch.zeros(1, 4, 2, 2, 2), lambda frames: frames))
        assert decoded[0].device.type == "meta"

    @pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
    def test_group_offload(self, pipe: OpenSoraPlanPipeline, kind: str) -> None:
        expected = pipe("a ball", num_inference_steps=2).frames
        cpu = torch.device("cpu")
        for part in (pipe.transformer, pipe.vae):
            part.enable_group_offload(
                onload_device=cpu, offload_device=cpu, offload_type=kind, num_blocks_per_group=1
            )
        assert torch.equal(pipe("a ball", num_inference_steps=2).frames, expected)

    def test_model_offload(self, pipe: OpenSoraPlanPipeline) -> None:
        expected = pipe("a ball", num_inference_steps=2).frames
        pipe.enable_model_cpu_offload(device="cpu")
        assert torch.equal(pipe("a ball", num_inference_steps=2).frames, expected)


def test_lora_weights_are_loaded_and_taken_away(pipe: OpenSoraPlanPipeline, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from peft import LoraConfig, get_peft_model_state_dict

    plain = latents(pipe)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k"]))
    for name, parameter in pipe.transformer.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    expected = latents(pipe)
    layers = get_peft_model_state_dict(pipe.transformer)
    OpenSoraPlanPipeline.save_lora_weights(str(tmp_path), transformer_lora_layers=layers)
    pipe.unload_lora_weights()
    torch.testing.assert_close(latents(pipe), plain, atol=1e-4, rtol=0)
    pipe.load_lora_weights(str(tmp_path), use_safetensors=True)
    torch.testing.assert_close(latents(pipe), expected, atol=1e-4, rtol=0)
    assert (expected - plain).abs().max() > 1e-2
