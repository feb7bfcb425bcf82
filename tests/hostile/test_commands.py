"""Damaged and hostile files given to whole commands: done, or refused in one line within limits."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from commands import Outcome, run, working_folder
from damage import damaged, swapped_text
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from osp_opt.base.artifacts import write_json

TRIES = int(os.environ.get("OSP_OPT_MUTANTS", "40"))
"""Damaged files in all; `make durability` tries 1,000."""

FILES = (
    "evaluate/evaluation.json",
    "baseline/manifest.json",
    "faster/manifest.json",
    "search-steps/searched_schedule.txt",
    "search-steps/searched_schedule.txt.meta.json",
    "search-steps/curve.json",
    "search-steps/options.json",
    "search-cache/dit_cache_config.json",
    "search-cache/dit_cache_config.json.meta.json",
    "calibration/calibration.safetensors",
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return working_folder(tmp_path_factory.mktemp("hostile") / "work")


def check(path: Path, content: bytes, *argv: str | Path) -> Outcome:
    """Run a command with another content of one of its files."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        outcome = run(*argv)
    finally:
        path.write_bytes(before)
    assert outcome.is_clean, (path.name, content[:2000], outcome)
    return outcome


def mutants(path: Path) -> st.SearchStrategy[bytes]:
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return damaged(data)
    return swapped_text(json.loads(data)) | swapped_text(json.loads(data)) | damaged(data)


@pytest.mark.parametrize("name", FILES)
def test_a_report_of_damaged_runs(name: str, work: Path) -> None:
    path = work / name

    @settings(
        max_examples=max(TRIES // 25, 2),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutants(path))
    def try_it(content: bytes) -> None:
        check(path, content, "report", work, "--max-videos", "1", "--out", work / "r.html")

    try_it()


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_an_evaluation_of_damaged_manifests(side: str, work: Path) -> None:
    path = work / ("baseline" if side == "reference" else "faster") / "manifest.json"

    @settings(
        max_examples=max(TRIES // 10, 3),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutants(path))
    def try_it(content: bytes) -> None:
        argv = ["--reference", work / "baseline", "--candidate", work / "faster", "--no-lpips"]
        check(path, content, "evaluate", *argv, "--out", work / "e.json")

    try_it()


def test_an_evaluation_cannot_show_videos_of_other_folders(work: Path, tmp_path: Path) -> None:
    path = work / "evaluate" / "evaluation.json"
    content: dict[str, Any] = json.loads(path.read_text())
    private = tmp_path / "private"
    private.mkdir()
    for file in (work / "baseline").iterdir():
        (private / file.name).write_bytes(file.read_bytes())
    content["reference"]["folder"] = str(private)
    page = work / "page.html"
    argv = ["report", work / "evaluate", work / "faster", "--out", page]
    outcome = check(path, json.dumps(content).encode(), *argv)
    assert outcome.code == 0
    assert f"videos in {private} are not shown" in outcome.err
    shown = page.read_text()
    different = (private / "001.mp4").read_bytes()  # the others are equal in both folders
    assert base64.b64encode(different).decode() not in shown
    assert shown.count("<video") >= 1


STEERING = "\x1b]0;owned\x07\x1b[2J"


def test_control_characters_of_files_and_flags(work: Path, tmp_path: Path) -> None:
    folder = tmp_path / f"f{STEERING}"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": STEERING}))
    (folder / "prompts.csv").write_text(f"{STEERING},x\na,b\n")
    (folder / "c.yaml").write_text('"\\e[2J": 1\n')
    write_json(folder / "cache.json", {STEERING: 1})
    write_json(folder / "s.txt", [STEERING])
    sample = ["sample", "--workdir", tmp_path / "w"]
    lines = [
        run("doctor", "--model-path", folder),
        run("report", folder),
        run("evaluate", "--reference", folder),
        run("evaluate", "--reference", folder / "none"),
        run(*sample, "--model-path", folder),
        run(*sample, "--prompt-file", folder / "prompts.csv"),
        run(*sample, "--config", folder / "c.yaml"),
        run(*sample, "--cache", folder / "cache.json"),
        run(*sample, "--schedule", folder / "s.txt"),
        run(*sample, "--parallel", STEERING),
        run(*sample, f"--{STEERING}"),
    ]
    for outcome in lines:
        assert outcome.code == 2
        assert "\x1b" not in outcome.out + outcome.err
        assert r"\x1b" in outcome.out + outcome.err


HANGING = {
    "config.yaml": "[" * 100_000,
    "deep.yaml": "a: " + "{b: " * 50_000,
    "number.yaml": "steps: 1:" + ":".join(["59"] * 5_000),
    "cache.json": json.dumps(
        {
            "format": "osp-opt/cache-policy/1",
            "num_steps": 3,
            "order": 0,
            "reuse": [{"steps": [1], "blocks": [[2 * n, 2 * n + 1] for n in range(10_000)]}],
        }
    ),
    "deep.json": "[" * 1_000_000,
    "wide.txt": json.dumps([n / 1e6 for n in range(200_000)]),
    "prompts.json": "[" + "[]," * 100_000 + "[]]",
}
FLAGS = {".yaml": "--config", "cache.json": "--cache", "wide.txt": "--schedule"}


@pytest.mark.parametrize("name", HANGING)
def test_small_files_that_could_take_for_ever(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(HANGING[name])
    flag = FLAGS.get(name, FLAGS.get(Path(name).suffix, "--prompt-file"))
    outcome = run("sample", "--workdir", tmp_path / "w", flag, tmp_path / name)
    assert outcome.is_clean
    assert outcome.code == 2
    assert len(outcome.err) < 2100
    assert not (tmp_path / "w").exists()
