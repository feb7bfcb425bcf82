"""The reference tool's five documented command lines, `torchrun ... -m module` left out or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from parsing import parse

from osp_opt.options import SampleOptions, SearchCacheOptions, SearchStepsOptions

LAUNCHER = "--nnodes=1 --nproc_per_node 8 --master_port 29503"
MODEL = """
    --model_path /models/model_ema --num_frames 29 --height 480 --width 640
    --cache_dir "../cache_dir" --text_encoder_name google/mt5-xxl
    --text_prompt examples/prompt_list_0.txt --ae CausalVAEModel_D4_4x8x8
    --ae_path "/models/causalvideovae"
"""
SAMPLING = """
    --fps 24 --guidance_scale 7.5 --enable_tiling --tile_overlap_factor 0.125 --save_memory
    --max_sequence_length 512 --sample_method EulerAncestralDiscrete --model_type "dit"
"""
VIDEOS = '--save_img_path "./sample_video_test" --num_sampling_steps 100'
LINES = {
    "calibration videos": ("sample", VIDEOS),
    "step search": (
        "search-steps",
        '--num_sampling_steps 50 --save_dir "/out" --videos_path "/videos" '
        '--neighbour_type "uniform" --monte_carlo_iters 5',
    ),
    "sampling with a schedule": ("sample", f'{VIDEOS} --schedule_timestep "/out/schedule.txt"'),
    "cache search": (
        "search-cache",
        '--num_sampling_steps 100 --search_type "dit_cache" --cache_ratio 1.3 '
        "--cache_save_path /out/cache",
    ),
    "sampling with a cache": ("sample", f'{VIDEOS} --dit_cache_config "/out/cache.json"'),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("launcher", ["", LAUNCHER])
def test_a_documented_line_parses(name: str, launcher: str) -> None:
    command, own = LINES[name]
    options = parse(command, f"{launcher} {MODEL} {SAMPLING} {own}")
    assert isinstance(options, (SampleOptions, SearchStepsOptions, SearchCacheOptions))
    assert options.command == command
    assert options.model_path == "/models/model_ema"
    assert options.ae_path == "/models/causalvideovae"
    assert options.text_encoder_name == "google/mt5-xxl"
    assert options.cache_dir == Path("../cache_dir")
    assert (options.num_frames, options.height, options.width) == (29, 480, 640)
    assert options.prompt_file == Path("examples/prompt_list_0.txt")
    assert options.text_prompt == ()
    assert (options.fps, options.guidance_scale) == (24, 7.5)
    assert (options.enable_tiling, options.save_memory, options.compile) == (True, True, False)
    assert options.tile_overlap_factor == 0.125
    assert options.max_sequence_length == 512
    assert options.sampler == "EulerAncestralDiscrete"
    assert options.nproc_per_node == (8 if launcher else 1)
    assert options.master_port == (29503 if launcher else None)


def test_what_each_line_asks_for_arrives() -> None:
    steps = parse(*LINES["step search"])
    assert isinstance(steps, SearchStepsOptions)
    assert steps.steps == (50,)
    assert steps.schedule_path == Path("/out/searched_schedule.txt")
    assert steps.videos_path == Path("/videos")
    assert (steps.neighbour_type, steps.monte_carlo_iters) == ("uniform", 5)

    cache = parse(*LINES["cache search"])
    assert isinstance(cache, SearchCacheOptions)
    assert (cache.steps, cache.ratio) == (100, 1.3)
    assert cache.policy_path == Path("/out/cache/dit_cache_config.json")

    scheduled = parse(*LINES["sampling with a schedule"])
    assert isinstance(scheduled, SampleOptions)
    assert scheduled.schedule == Path("/out/schedule.txt")
    assert scheduled.out == scheduled.out_dir == Path("sample_video_test")

    cached = parse(*LINES["sampling with a cache"])
    assert isinstance(cached, SampleOptions)
    assert cached.cache == Path("/out/cache.json")


def test_dashes_and_new_names_mean_the_same() -> None:
    old = parse("sample", "--num_sampling_steps 30 --sample_method DDIM --save_img_path x")
    new = parse("sample", "--steps 30 --sampler DDIM --out x")
    dashes = parse("sample", "--num-sampling-steps=30 --sample-method=DDIM --save-img-path=x")
    assert old == new == dashes


def test_several_prompts_follow_one_flag_or_repeat_it() -> None:
    expected = ("a red ball", "a blue cube", "-5 degrees")
    line = "--text_prompt 'a red ball' 'a blue cube' --text-prompt '-5 degrees' --seed 3"
    options = parse("sample", line)
    assert isinstance(options, SampleOptions)
    assert options.text_prompt == expected
    assert options.seed == 3


@pytest.mark.parametrize("command", ["calibrate", "search-steps", "search-cache", "sample"])
def test_flags_of_every_reference_command_exist_everywhere(command: str) -> None:
    parse(command, f"{MODEL} {SAMPLING} {VIDEOS} --version 65x512x512 --device cuda:0 --compile")
