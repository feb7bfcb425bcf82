"""The doctor's verdicts on real, damaged and absent models, and on a machine's devices."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_opt.cli.diagnosis import Section, bundled
from osp_opt.cli.doctor import PROBLEMS_EXIT_CODE, examine, run
from osp_opt.options import DoctorOptions


@pytest.fixture
def transformer(golden: Path, tmp_path: Path) -> Path:
    """A copy of the golden transformer that a test may damage."""
    return Path(shutil.copytree(golden / "transformer" / "main", tmp_path / "model"))


def last(**options: object) -> Section:
    """The section of the model that the options name."""
    return examine(DoctorOptions(**options))[-1]


def test_a_good_transformer_is_described(transformer: Path, golden: Path) -> None:
    section = last(model_path=str(transformer))
    rows = dict(section.rows)
    weights = load_file(transformer / "diffusion_pytorch_model.safetensors")
    assert rows["class"] == "OpenSoraT2V"
    assert rows["structure"] == "4 layers, 4 heads x 18"
    assert rows["trained for"] == "29 frames, 64 x 80 pixels (h x w)"
    assert rows["parameters"] == f"{sum(tensor.numel() for tensor in weights.values()):,}"
    assert rows["stored"].endswith("in float32")
    assert rows["loadable"] == "yes"
    assert len(rows["fingerprint"]) == 16
    assert section.problems == ()


def test_vae_and_text_encoder_are_described(golden: Path) -> None:
    sections = examine(
        DoctorOptions(
            ae_path=str(golden / "vae" / "d4_4x8x8"),
            text_encoder_name=str(golden / "pipeline" / "text_encoder"),
        )
    )
    vae, text = sections[-2:]
    assert dict(vae.rows)["class"] == "CausalVAEModel"
    assert dict(text.rows)["class"] == "mt5"
    assert dict(vae.rows)["loadable"] == dict(text.rows)["loadable"] == "yes"


def test_a_folder_of_models_lists_them_all(golden: Path) -> None:
    sections = examine(DoctorOptions(model_path=str(golden / "transformer")))
    assert [Path(section.title).name for section in sections[-3:]] == ["abs_pos", "interp", "main"]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("truncate", "truncated or not a weight file"),
        ("no weights", "no weights found"),
        ("other class", "is a UNet2DModel; known: OpenSoraT2V, CausalVAEModel, mt5"),
        ("not json", "not valid JSON"),
        ("one layer more", "missing"),
    ],
)
def test_what_is_wrong_is_said_and_the_exit_code_is_2(
    damage: str, said: str, transformer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, config = (
        transformer / "diffusion_pytorch_model.safetensors",
        transformer / "config.json",
    )
    content = json.loads(config.read_text())
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no weights":
        weights.unlink()
    elif damage == "other class":
        config.write_text(json.dumps(content | {"_class_name": "UNet2DModel"}))
    elif damage == "not json":
        config.write_text("{")
    else:
        config.write_text(json.dumps(content | {"num_layers": 5}))
    options = DoctorOptions(model_path=str(transformer))
    assert said in examine(options)[-1].problems[0]
    assert run(options) == PROBLEMS_EXIT_CODE
    assert "problem:" in capsys.readouterr().out


def test_a_shape_it_was_not_trained_for_is_a_problem_unless_allowed(transformer: Path) -> None:
    shape = {"model_path": str(transformer), "num_frames": 93, "height": 64, "width": 80}
    assert "trained for 29x64x80" in last(**shape).problems[0]
    assert last(**shape, allow_untrained_shape=True).problems == ()
    assert last(**{**shape, "num_frames": 29}).problems == ()


def test_a_folder_that_is_not_there_is_a_problem_and_a_hub_id_is_not(tmp_path: Path) -> None:
    assert "no such folder" in last(model_path=str(tmp_path / "nothing")).problems[0]
    hub = last(model_path="LanguageBind/Open-Sora-Plan-v1.2.0", version="29x480p")
    assert hub.problems == ()
    assert "downloaded when a job needs it" in dict(hub.rows)["state"]


def test_an_empty_folder_is_a_problem(tmp_path: Path) -> None:
    assert "holds no config.json" in last(model_path=str(tmp_path)).problems[0]


def test_files_that_others_may_change_are_a_warning_only(transformer: Path) -> None:
    (transformer / "config.json").chmod(0o666)
    section = last(model_path=str(transformer))
    assert "writable by group or others" in dict(section.rows)["warning"]
    assert section.problems == ()


def test_the_machine_is_described(transformer: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(DoctorOptions(model_path=str(transformer), device="cpu")) == 0
    said = capsys.readouterr().out
    assert torch.__version__.partition("+")[0] in said
    for word in ("ffmpeg", "npu", "cuda", "cpu in float32", "OpenSoraT2V"):
        assert word in said


def test_an_impossible_device_choice_is_a_problem(transformer: Path) -> None:
    options = DoctorOptions(model_path=str(transformer), device="cpu", attention="_native_npu")
    assert "does not run on cpu" in examine(options)[1].problems[0]


def test_the_bundled_model_is_whole() -> None:
    assert {dict(section.rows).get("loadable") for section in bundled()} == {"yes"}
