"""`osp-opt export` as its users meet it: files in, text or files out, and every wrong turn."""

from __future__ import annotations

import json
import re
import typing
from pathlib import Path

import pytest
import torch
import yaml

from osp_opt.base.artifacts import write_meta
from osp_opt.cache.guidance import GuidancePlan
from osp_opt.cache.policy import CachePolicy
from osp_opt.cli.app import main
from osp_opt.export.targets import TARGETS
from osp_opt.options.export import Runtime
from osp_opt.sampling.recipe import Recipe
from osp_opt.sampling.schedule import TimestepSchedule

MINDIE = (
    'CacheConfig(method="dit_block_cache", blocks_count=12, steps_count=50, step_start=5, '
    "step_interval=2, step_end=40, block_start=2, block_end=9)\n"
)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A policy with the provenance that search-cache writes, one without, and a schedule."""
    policy = CachePolicy.four_field(2, 7, 5, 2)
    for name in ("policy.json", "bare.json"):
        policy.save(tmp_path / name)
    setting = {"steps": 50, "sampler": "EulerAncestralDiscrete"}
    times = {"blocks": [0.1] * 12}
    write_meta(tmp_path / "policy.json", {"setting": setting, "block_times_seconds": times})
    own = {"setting": setting}
    other = {"setting": {"steps": 3, "sampler": "CogVideoXDDIMScheduler", "arguments": {}}}
    for name, meta in (("schedule.txt", None), ("known.txt", own), ("cog.txt", other)):
        TimestepSchedule((999.0, 500.0, 0.0)).save(tmp_path / name)
        if meta is not None:
            write_meta(tmp_path / name, meta)
    (tmp_path / "mindie.py").write_text(MINDIE)
    (tmp_path / "folder").mkdir()
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(["export", *args])
    out, err = capsys.readouterr()
    return code, out, err


def test_every_runtime_has_a_target() -> None:
    assert set(typing.get_args(Runtime)) == set(TARGETS)


def test_a_policy_to_paste_and_to_a_file(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    """Blocks and steps are those that the provenance tells."""
    policy = str(files / "policy.json")
    code, out, _ = run(capsys, policy, "--to", "mindie-sd")
    assert code == 0
    assert "blocks_count=12, steps_count=50, step_start=5" in out
    target = files / "new" / "cache.yaml"
    code, out, _ = run(capsys, policy, "--to", "cache-dit", "--out", str(target))
    assert (code, out) == (0, f"written: {target}\n")
    config = yaml.safe_load(target.read_text())["cache_config"]
    assert (config["Fn_compute_blocks"], config["Bn_compute_blocks"]) == (2, 3)
    assert config["num_inference_steps"] == 50
    tensor = files / "policy.pt"
    assert run(capsys, policy, "--to", "mindie-policy", "--out", str(tensor))[0] == 0
    assert torch.load(tensor, weights_only=True).shape == (49, 12)


def test_numbers_may_be_told(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    bare = str(files / "bare.json")
    code, out, _ = run(capsys, bare, "--to=sglang", "--num-blocks=12", "--num_sampling_steps=20")
    assert code == 0
    assert "export SGLANG_CACHE_DIT_SCM_CACHE_BINS=1,1,1,1,1,1,1\n" in out
    _, _, err = run(capsys, str(files / "policy.json"), "--to", "sglang", "--steps", "20")
    assert "searched for 50 steps, exported for 20" in err


def test_a_schedule_is_one_line_to_paste(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    schedule = str(files / "schedule.txt")
    code, out, _ = run(capsys, schedule, "--to", "diffusers")
    assert code == 0
    assert out.splitlines()[0] == "timesteps=[999.0, 500.0, 0.0]"
    code, out, _ = run(capsys, schedule, "--to", "comfyui", "--shift", "3")
    assert (code, out) == (0, "0.999, 0.5, 0.0\n")
    # ComfyUI's ManualSigmas takes signs, digits and points for numbers, and no exponents.
    TimestepSchedule((999.0, 5.0, 0.05)).save(files / "small.txt")
    code, out, _ = run(capsys, str(files / "small.txt"), "--to", "comfyui", "--shift", "3")
    assert re.fullmatch(r"\d+\.\d+(, \d+\.\d+)*\n", out)
    assert [float(x) for x in out.split(",")] == pytest.approx([0.999, 0.005, 5e-05, 0.0])


def test_a_recipe_is_exported_in_its_parts(capsys: pytest.CaptureFixture[str], files: Path) -> None:
    recipe = Recipe(
        sampler="EulerDiscrete",
        timesteps=[999.0, 700.0, 400.0, 0.0],
        corrections=[0.0, 0.5, 0.5, 0.0],
        cache=CachePolicy.explicit({1: [(2, 9)], 3: [(2, 9)]}, 4).to_json(),
    )
    path = str(files / "recipe.json")
    recipe.save(path)
    code, out, err = run(capsys, path, "--to", "diffusers")
    assert code == 0
    assert out.startswith("timesteps=[999.0, 700.0, 400.0, 0.0]\n")
    assert "corrections" in err
    code, out, _ = run(capsys, path, "--to", "cache-dit", "--num-blocks", "12")
    assert code == 0
    assert yaml.safe_load(out)["cache_config"]["steps_computation_mask"] == [1, 0, 1, 0]
    recipe.model_copy(update={"cache": None}).save(path)
    code, _, err = run(capsys, path, "--to", "cache-dit", "--num-blocks", "12")
    assert code == 2
    assert "this recipe caches nothing" in err


def test_a_config_of_mindie_sd_says_what_it_does(
    capsys: pytest.CaptureFixture[str], files: Path
) -> None:
    written = files / "ours.json"
    code, _, err = run(capsys, str(files / "mindie.py"), "--from=mindie-sd", "--out", str(written))
    assert code == 0
    assert "step_end 40 does nothing" in err
    assert "blocks 2..8 every 2 steps from step 5, of 12 blocks in 50 steps" in err
    assert CachePolicy.from_file(written) == CachePolicy.four_field(2, 7, 5, 2)
    code, out, _ = run(capsys, str(files / "mindie.py"), "--from=mindie-sd", "--to=cache-dit")
    assert code == 0
    assert yaml.safe_load(out)["cache_config"]["Fn_compute_blocks"] == 2


def test_a_policy_of_one_block_is_warned_of_or_refused(
    capsys: pytest.CaptureFixture[str], files: Path
) -> None:
    path = files / "one.json"
    with pytest.warns(UserWarning, match="MindIE-SD makes wrong videos"):
        CachePolicy.four_field(2, 1, 5, 2).save(path)
    numbers = ("--num-blocks", "12", "--steps", "50")
    code, _, err = run(capsys, str(path), "--to", "osp-opt", *numbers)
    assert code == 0
    assert "msModelSlim stops at it" in err
    code, out, err = run(capsys, str(path), "--to", "mindie-sd", *numbers)
    assert (code, out) == (2, "")
    assert "one block" in err
    assert "nearest" in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "FILE is missing"),
        (["policy.json"], "--to is missing"),
        (["policy.json", "--to", "cachedit"], "did you mean cache-dit"),
        (["nothing.json", "--to", "sglang"], "no such file"),
        (["folder", "--to", "sglang"], "without a calibration"),
        (["schedule.txt", "--to", "mindie-sd"], "is a schedule, and --to mindie-sd takes a cache"),
        (["policy.json", "--to", "comfyui"], "is a cache policy"),
        (["bare.json", "--to", "mindie-sd"], "give --num-blocks"),
        (["bare.json", "--to", "mindie-sd", "--num-blocks", "12"], "give --steps"),
        (["bare.json", "--to", "cache-dit", "--num-blocks", "4", "--steps", "9"], "beyond"),
        (["policy.json", "--to", "cache-dit", "--steps", "6"], "leaves nothing to reuse"),
        (["schedule.txt", "--to", "diffusers", "--steps", "3"], "no use for it"),
        (["policy.json", "--to", "sglang", "--shift", "3"], "no use for it"),
        (["policy.json", "--to", "mindie-policy"], "give --out FILE.pt"),
        (["policy.json", "--to", "cache-dit", "--out", "x.txt"], "ends in .yaml"),
        (["policy.json", "--to", "cache-dit", "--out", "folder"], "ends in .yaml"),
        (["mindie.json", "--to", "cache-dit"], "add --from mindie-sd"),
        (["mindie.py", "--to", "cache-dit"], "add --from mindie-sd"),
        (["policy.json", "--to", "osp-opt", "--out", "policy.json"], "is the file to export"),
        (["bare.json", "--to", "osp-opt", "--out", "policy.json"], "with its provenance"),
        (["policy.json", "--to", "cache-dit", "--out", "new.meta.json"], "a name for provenance"),
        (["policy.json", "--to", "cache-dit", "--out", "bare.json/x.yaml"], "is no folder"),
        (["policy.json", "--to", "cache-dit", "--num-blocks", "32"], "for a model of 12 blocks"),
        (["mindie.py", "--from", "mindie-sd", "--num-blocks", "8"], "for a model of 12 blocks"),
        (["known.txt", "--to", "diffusers", "--shift", "3"], "which is not of flow matching"),
        (["known.txt", "--to", "comfyui", "--shift", "3"], "which is not of flow matching"),
        (["cog.txt", "--to", "comfyui"], "whose noise levels the file does not hold"),
        (["cut.json", "--to", "cache-dit"], "not valid JSON"),
        (["policy.json", "--from", "mindie-sd"], "MindIE-SD's CacheConfig has"),
        (["schedule.txt", "--from", "mindie-sd"], "a CacheConfig is an object"),
        (["number.json", "--to", "cache-dit"], "neither a schedule nor a cache policy"),
    ],
)
def test_a_wrong_turn_is_one_line_and_writes_nothing(
    capsys: pytest.CaptureFixture[str],
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(files)
    Path("mindie.json").write_text(json.dumps({"method": "dit_block_cache", "blocks_count": 12}))
    Path("number.json").write_text("7")
    Path("cut.json").write_text(Path("bare.json").read_text()[:40])
    before = {path: path.is_file() and path.read_bytes() for path in files.rglob("*")}
    code, out, err = run(capsys, *args)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.splitlines()) == 1
    assert {path: path.is_file() and path.read_bytes() for path in files.rglob("*")} == before


@pytest.mark.parametrize("runtime", ["mindie-sd", "mindie-policy", "cache-dit", "sglang"])
def test_guidance_alone_and_a_policy_of_nothing_go_nowhere(
    capsys: pytest.CaptureFixture[str], files: Path, runtime: str
) -> None:
    """No nearest policy is named where there is none: a cache of blocks would be no part of it."""
    asked = (str(files / "plan.json"), "--to", runtime, "--num-blocks", "12")
    out = () if runtime != "mindie-policy" else ("--out", str(files / "plan.pt"))
    for guidance, words in ((None, "never reuses"), (GuidancePlan.every(2, 9), "and no blocks")):
        CachePolicy.explicit({}, 9, 0, guidance).save(files / "plan.json")
        code, shown, err = run(capsys, *asked, *out)
        assert (code, shown) == (2, "")
        assert words in err
        assert "nearest" not in err


def test_a_schedule_of_another_pipelines_table_has_its_timesteps_only(
    capsys: pytest.CaptureFixture[str], files: Path
) -> None:
    """Its noise levels are not Open-Sora-Plan's, and its scheduler takes whole timesteps."""
    code, out, err = run(capsys, str(files / "cog.txt"), "--to", "diffusers")
    assert (code, out) == (0, "timesteps=[999, 500, 0]\n")
    assert "CogVideoXDDIMScheduler" in err


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plan.json", {"num_steps": 90_000, "reuse": [{"steps": [1], "blocks": [[1, 2]]}]}),
        ("wide.json", {"num_steps": 9, "reuse": [{"steps": [1], "blocks": [[1, 10**12]]}]}),
    ],
)
def test_sizes_that_no_model_has_are_refused_at_once(
    capsys: pytest.CaptureFixture[str], files: Path, name: str, content: dict[str, object]
) -> None:
    path = files / name
    path.write_text(json.dumps({"format": "osp-opt/cache-policy/1", "order": 0, **content}))
    code, _, err = run(capsys, str(path), "--to", "mindie-sd", "--num-blocks", "32")
    assert code == 2
    assert len(err.splitlines()) == 1
    mindie = MINDIE.replace("=50", "=10000000000").replace("=12", "=10000000000")
    (files / "huge.py").write_text(mindie)
    code, _, err = run(capsys, str(files / "huge.py"), "--from=mindie-sd", "--to=cache-dit")
    assert code == 2
    assert "at most 1000 blocks in 1000 steps" in err
