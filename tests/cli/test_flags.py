"""Flags, configuration files and the words in which they are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from parsing import parse

from osp_opt.base.errors import FileError, OptionError
from osp_opt.cli.app import main
from osp_opt.cli.config_file import read_config
from osp_opt.cli.flags import resolve
from osp_opt.options import (
    COMMANDS,
    OptimizeOptions,
    SampleOptions,
    SearchCacheOptions,
    SearchStepsOptions,
)
from osp_opt.options.base import PANELS, option_extra
from osp_opt.quality.loss import FEWEST_JUDGED

PRESETS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """What the command line says when it refuses; checks form and exit code."""
    assert main(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, "more than one line"
    assert captured.err.startswith("osp-opt: error: ")
    return captured.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--fpss", "3"], ["--fpss", "did you mean --fps?"]),
        (["--num_sampling_step", "4"], ["did you mean --num-sampling-steps?"]),
        (["--cache_ratio", "1.3"], ["--cache-ratio", "search-cache"]),
        (["--height", "100"], ["--height 100", "multiple of 16"]),
        (["--num_frames", "28"], ["--num-frames 28", "25 or 29"]),
        (["--num-frames", "many"], ["--num-frames many", "integer"]),
        (["--sample_method", "EulerDiscret"], ["did you mean EulerDiscrete?"]),
        (["--model_type", "udit"], ["--model-type udit", "not supported"]),
        (["--model_type", "latte"], ["--model-type latte", "not supported"]),
        (["--device", "gpu"], ["--device gpu", "say cuda"]),
        (["--device", "npu:3"], ["--device npu:3", "ASCEND_RT_VISIBLE_DEVICES"]),
        (["--guidance-scale", "nan"], ["--guidance-scale nan", "finite"]),
        (["--steps", "0"], ["--steps 0", "steps"]),
        (["--text-prompt", ""], ["--text-prompt", "empty"]),
        (["--nnodes", "2"], ["--nnodes 2", "--master-addr"]),
        (["--model-path", "/does/not/exist"], ["--model-path /does/not/exist", "no such folder"]),
        (["--schedule", "/does/not/exist"], ["schedule /does/not/exist", "no such file"]),
        (["--prompt-file", "/does/not/exist"], ["prompt file /does/not/exist", "no such file"]),
        (["--config", "/does/not/exist"], ["config /does/not/exist", "no such file"]),
        (["--parallel", "sp=3"], ["--parallel sp=3"]),
        (["surplus"], ["surplus"]),
    ],
)
def test_wrong_input_is_one_line_that_names_it(
    capsys: pytest.CaptureFixture[str], args: list[str], words: list[str]
) -> None:
    line = refusal(capsys, "sample", *args)
    for word in words:
        assert word in line


@pytest.mark.parametrize("flag", ["--dry-run", "-x", "--frobnicate", "--hint"])
def test_nothing_is_suggested_that_is_not_near(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert "did you mean" not in refusal(capsys, "sample", flag)


def test_the_words_that_everybody_uses() -> None:
    line = "--prompt 'a dog' 'a cat' --num-inference-steps 30 --model m -o place -v"
    options = parse("sample", line)
    assert isinstance(options, SampleOptions)
    assert options.text_prompt == ("a dog", "a cat")
    assert (options.steps, options.model_path, str(options.out)) == (30, "m", "place")
    assert options.verbosity == "verbose"
    assert parse("search-steps", "-q").verbosity == "quiet"
    assert parse("report", "--json -o page.html").verbosity == "json"
    assert parse("search-cache", "--num_inference_steps 20").steps == 20


def test_the_reference_tools_flags_ask_for_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    def policy(line: str) -> str:
        options = parse("search-cache", line)
        assert isinstance(options, SearchCacheOptions)
        return options.policy

    assert policy("--ratio 1.3 --out place") == "free"
    assert policy("--search_type dit_cache") == "four-field"
    assert policy("--cache_save_path place/cache.json") == "four-field"
    assert policy("--cache_save_path place/cache.json --policy free") == "free"
    named = parse("search-cache", "--cache_save_path place/cache.json")
    assert isinstance(named, SearchCacheOptions)
    assert named.policy_path == Path("place/cache.json")
    line = refusal(capsys, "search-cache", "--cache_save_path", "a", "--out", "b")
    assert "one place" in line


@pytest.mark.parametrize("words", ["sam", "sample --nu"])
def test_the_shell_completes(words: str) -> None:
    count = len(words.split())
    environment = {
        **os.environ,
        "_OSP_OPT_COMPLETE": "complete_bash",
        "COMP_WORDS": f"osp-opt {words}",
        "COMP_CWORD": str(count),
    }
    command = [sys.executable, "-c", "from osp_opt.__main__ import run; run()"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    expected = {"sam": ["sample"], "sample --nu": ["--num-frames", "--num-prompts"]}[words]
    assert done.stdout.split() == expected


@pytest.mark.parametrize(
    ("flags", "guided"),
    [([], True), (["--guided"], True), (["--unguided"], False), (["--no-guided"], False)],
)
def test_a_switch_may_have_a_word_of_its_own_for_off(flags: list[str], guided: bool) -> None:
    options = parse("search-steps", " ".join(flags))
    assert isinstance(options, SearchStepsOptions)
    assert options.guided is guided


def test_other_subcommands_are_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert "sample" in refusal(capsys, "sampel")
    line = refusal(capsys, "search-steps", "--search_type", "dit_cache")
    assert "osp-opt search-cache" in line
    line = refusal(capsys, "search-cache", "--search_type", "restep")
    assert "osp-opt search-steps" in line


def test_a_search_with_a_calibration_that_is_not_there_says_what_to_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    places = ("--workdir", str(tmp_path / "w"), "--calibration", str(tmp_path / "c"))
    line = refusal(capsys, "search-cache", *places)
    assert "osp-opt calibrate" in line
    assert not (tmp_path / "w").exists(), "a refused command left something behind"


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--schedule", "/does/not/exist", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "num_frames: 29\nsample-method: DDIM\nseed: 7\nsave_memory: true\n"
        "sample:\n  seed: 8\nsearch-steps: {steps: 20}\n"
    )
    options = parse("sample", f"--config {config} --num-frames 33 --no-save-memory")
    assert isinstance(options, SampleOptions)
    assert options.num_frames == 33
    assert options.save_memory is False
    assert options.sampler == "DDIM"
    assert options.seed == 8
    assert options.steps == 100
    search = parse("search-steps", f"--config {config}")
    assert isinstance(search, SearchStepsOptions)
    assert (search.steps, search.seed) == ((20,), 7)


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("num_frame: 29", OptionError, ["num_frame", "did you mean num_frames?"]),
        ("steps: 5\nnum_sampling_steps: 6", OptionError, ["twice"]),
        ("height: 100", OptionError, ["config", "height 100", "multiple of 16"]),
        ("steps: 5\nsteps: 6", FileError, ["steps is given twice"]),
        ("sample:\n  steps: 5\n  steps: 5", FileError, ["steps is given twice"]),
        ("- 1\n- 2", FileError, ["mapping"]),
        ("a: [", FileError, ["not valid YAML"]),
        ("a: &x [1]\nb: *x", FileError, ["aliases"]),
        ("sample: 3", FileError, ["sample"]),
        ("!!python/object/apply:os.system ['true']", FileError, ["not valid YAML"]),
    ],
)
def test_a_broken_config_is_refused(
    tmp_path: Path, text: str, kind: type[Exception], words: list[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(kind) as refused:
        resolve(SampleOptions, {}, config)
    for word in words:
        assert word in str(refused.value)


def test_a_limit_of_loss_brings_the_prompts_of_a_verdict() -> None:
    assert OptimizeOptions(max_loss=0.01).verify_prompts == FEWEST_JUDGED
    assert OptimizeOptions(max_loss=0.01, verify_prompts=2).verify_prompts == 2


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    "command", [name for name, model in COMMANDS.items() if "num_frames" in model.model_fields]
)
def test_presets_serve_every_command(preset: Path, command: str) -> None:
    values = read_config(COMMANDS[command], preset)
    options = COMMANDS[command](**values)
    content = yaml.safe_load(preset.read_text())
    if "num_frames" in COMMANDS[command].model_fields:
        assert options.model_dump()["num_frames"] == content["num_frames"]


def test_there_are_presets() -> None:
    expected = {"bundled", "1x480p", "29x480p", "29x720p", "93x480p", "93x720p"}
    assert {path.stem for path in PRESETS} == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_described_and_has_a_panel(command: str) -> None:
    for name, field in COMMANDS[command].model_fields.items():
        assert field.description, name
        assert option_extra(field)["panel"] in PANELS, name


def test_lists_and_percentages() -> None:
    several = parse("search-steps", "--steps 10,20,50")
    assert isinstance(several, SearchStepsOptions)
    assert several.steps == (10, 20, 50)
    bounded = parse("search-cache", "--max-loss 1%")
    assert isinstance(bounded, SearchCacheOptions)
    assert bounded.max_loss == pytest.approx(0.01)


def test_options_survive_their_file() -> None:
    options = parse("sample", "--text-prompt a b --steps 30 --schedule s.txt --no-compile")
    copy = SampleOptions.model_validate(options.model_dump(mode="json", exclude_unset=True))
    assert copy == options
    assert copy.model_fields_set == options.model_fields_set
