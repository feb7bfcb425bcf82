"""NPU branches, run on a stand-in torch_npu in processes of their own; no NPU was involved."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import probe_conditions
import probe_working
import pytest
import torch
from npu_site import CONDITIONS, install, run_with
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def probe(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder, out = (tmp_path_factory.mktemp(name) for name in ("site", "out"))
    out /= "sample.safetensors"
    install(folder, "working")
    done = run_with(folder, probe_working.__file__, golden / "transformer", out)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "sample": load_file(out)["sample"]}


def test_auto_opens_the_npu_of_the_local_rank_on_hccl(probe: dict[str, Any]) -> None:
    assert probe["auto"] == ["npu", "npu:1", "hccl", "torch.bfloat16"]
    assert probe["cpu"] == "cpu"
    assert probe["discovered"] == [2, ["Ascend910B2", "Ascend910B2"], "torch_npu 2.13.0", None]


def test_fused_attention_where_it_takes_the_dtype(probe: dict[str, Any]) -> None:
    assert probe["attention"] == ["_native_npu", "native"]
    assert probe["asked_attention"] == "native"
    assert probe["float32_attention"].startswith("OptionError: --attention _native_npu: takes")
    assert "does not run on npu" in probe["cuda_attention"]


def test_half_precision_has_the_ascend_policy_and_float32_none(probe: dict[str, Any]) -> None:
    assert probe["precision"] == ["torch.float16", "torch.float32", "torch.float32"]
    assert probe["precision_float32"] == "None"


def test_everything_reaches_the_device_of_this_rank(probe: dict[str, Any]) -> None:
    assert probe["calls"][0] == ["set_device", "npu:1"]
    assert ["synchronize", "npu:1"] in probe["calls"]
    assert ["empty_cache"] in probe["calls"]
    assert ["reset_peak_memory_stats", "npu:1"] in probe["calls"]
    assert ["manual_seed_all", "7"] in probe["calls"]
    assert ["memory_allocated", "npu:1"] in probe["calls"]
    assert probe["memory_gib"] == [3, 5, 64]
    assert probe["seed"] == 7


def test_more_processes_than_npus_are_refused(probe: dict[str, Any]) -> None:
    assert probe["third_rank"].startswith("DeviceError: --device npu: process 2 has no device")
    assert "2 visible" in probe["third_rank"]


def test_two_ranks_meet_on_gloo_for_objects_and_hccl_for_tensors(probe: dict[str, Any]) -> None:
    assert probe["gathered"] == ["npu:0", "npu:1"]
    assert probe["hccl_used"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What opening devices says where torch_npu is in some condition, or working but hidden."""
    folders = {
        name: install(tmp_path_factory.mktemp("site"), name if name in CONDITIONS else "working")
        for name in (*CONDITIONS, "hidden")
    }
    pairs = [(folder, "" if name == "hidden" else "-") for name, folder in folders.items()]
    nothing = tmp_path_factory.mktemp("nothing")
    done = run_with(nothing, probe_conditions.__file__, *(word for pair in pairs for word in pair))
    assert done.returncode == 0, done.stderr
    return dict(zip(folders, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("no CANN", "installed but does not load (libhccl.so: cannot open shared object file"),
        ("two accelerators", "does not load (Two accelerators cannot be used at the same time"),
        ("lacks a package", "lacks the package 'a_package_that_nobody_has'; install it"),
    ],
)
def test_torch_npu_that_does_not_load_is_explained_and_the_cpu_works(
    condition: str, said: str, opened: dict[str, list[str]]
) -> None:
    auto, cpu, message = opened[condition]
    assert (auto, cpu) == ("cpu", "cpu")
    assert message.startswith("--device npu: torch_npu is installed but")
    assert said in message
    assert "\n" not in message
    assert message.endswith("or use --device cpu")
    assert opened["working"] == ["npu", "cpu"]


def test_doctor_and_sample_work_where_torch_npu_lacks_cann(
    tmp_path: Path, tiny_checkpoint: Path
) -> None:
    # diffusers and transformers both import a torch_npu that has metadata.
    folder = install(tmp_path / "site", "no CANN")
    model = ["--model-path", tiny_checkpoint]
    doctor = run_with(folder, "-m", "osp_opt", "doctor", *model, autoload=None, COLUMNS="200")
    assert doctor.returncode == 0, doctor.stderr
    assert "torch_npu is installed but does not load (libhccl.so" in doctor.stdout
    image = ["--num-frames", "1", "--height", "32", "--width", "32", "--allow-untrained-shape"]
    out = ["--text-prompt", "a disc", "--steps", "2", "--out", tmp_path / "made"]
    sample = run_with(folder, "-m", "osp_opt", "sample", *model, *image, *out, autoload=None)
    assert sample.returncode == 0, sample.stderr
    assert len(list((tmp_path / "made").rglob("001*.png"))) == 1


def test_no_visible_npu_names_the_variable_that_hides_them(opened: dict[str, list[str]]) -> None:
    *devices, message = opened["hidden"]
    assert devices == ["cpu", "cpu"]
    assert "sees no NPU (ASCEND_RT_VISIBLE_DEVICES=)" in message


def test_import_torch_itself_fails_without_cann_unless_autoload_is_off(tmp_path: Path) -> None:
    # The reason why the launcher switches it off; this is torch's behaviour, not ours.
    folder = install(tmp_path, "no CANN")
    assert run_with(folder, "-c", "import torch", autoload="1").returncode != 0
    assert run_with(folder, "-c", "import torch", autoload="0").returncode == 0


def test_masks_have_the_polarity_that_the_fused_kernel_wants(
    probe: dict[str, Any], golden: Path
) -> None:
    official = load_file(golden / "transformer" / "case_a_video.safetensors")["out.output"]
    torch.testing.assert_close(probe["sample"], official, rtol=0, atol=1e-5)
    # One masked cross-attention per block; self-attention got no mask at all.
    config = json.loads((golden / "transformer" / "main" / "config.json").read_text())
    assert len(probe["masked"]) == config["num_layers"]
    assert all(call[2] == "torch.bool" for call in probe["masked"])


def test_this_process_never_imported_torch_npu() -> None:
    assert "torch_npu" not in sys.modules
