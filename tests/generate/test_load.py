"""Models found and loaded from the options, in the layouts of releases and of the package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from osp_opt.base.errors import CheckpointError
from osp_opt.model.release import ModelDefaults
from osp_opt.model.text.captions import NEGATIVE_PROMPT, POSITIVE_TEMPLATE
from osp_opt.options import SampleOptions
from osp_opt.pipelines.load import load_pipeline, release_text_encoder
from osp_opt.system.device import Device

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as the released checkpoints: a transformer per size, one autoencoder."""
    root = tmp_path_factory.mktemp("release")
    shutil.copytree(GOLDEN / "transformer" / "main", root / "29x480p")
    shutil.copytree(GOLDEN / "vae" / "d4_4x8x8", root / "vae")
    shutil.copytree(GOLDEN / "pipeline" / "text_encoder", root / "text_encoder")
    return root


@pytest.fixture
def cpu() -> Device:
    return Device.open("cpu")


def options(**given: Any) -> SampleOptions:
    return SampleOptions(text_prompt=("a cat",), **given)


def test_a_release_is_loaded_and_sampled(release: Path, cpu: Device) -> None:
    loaded = load_pipeline(options(model_path=str(release), version="29x480p"), cpu)
    assert loaded.defaults == ModelDefaults(num_frames=29, height=64, width=80)
    assert loaded.defaults.guidance_scale == 7.5
    assert loaded.defaults.prompt_template == POSITIVE_TEMPLATE
    assert loaded.defaults.negative_prompt == NEGATIVE_PROMPT
    assert loaded.transformer_config["num_layers"] == 4
    assert len(loaded.fingerprint) == 64
    run = load_file(GOLDEN / "pipeline" / "run1_default10.safetensors")
    found = loaded.pipeline.encode_prompts(
        [
            loaded.defaults.prompt_template.format(
                "A young man at his 20s is sitting on a piece of cloud in the sky, reading a book."
            )
        ],
        loaded.defaults.negative_prompt,
        300,
    )
    torch.testing.assert_close(found.embeds, run["out.encoder_hidden_states"][1], rtol=0, atol=1e-5)
    release_text_encoder(loaded.pipeline)
    assert loaded.pipeline.text_encoder is None


def test_all_ways_of_naming_one_model_agree(release: Path, cpu: Device, tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(release / "29x480p", package / "transformer")
    for part in ("vae", "text_encoder"):
        shutil.copytree(release / part, package / part)
    ways = [
        {"model_path": str(release), "version": "29x480p"},
        {"model_path": str(release / "29x480p")},
        {"model_path": str(package)},
        {
            "model_path": str(release / "29x480p"),
            "ae_path": str(package / "vae"),
            "text_encoder_name": str(package / "text_encoder"),
        },
    ]
    fingerprints = {load_pipeline(options(**way), cpu).fingerprint for way in ways}
    assert len(fingerprints) == 1


def test_defaults_file_beside_the_model_is_used(release: Path, cpu: Device, tmp_path: Path) -> None:
    shutil.copytree(release, tmp_path / "model")
    given = {"guidance_scale": 2, "prompt_template": "{}", "max_sequence_length": 24, "fps": 12}
    (tmp_path / "model" / "defaults.json").write_text(json.dumps(given))
    loaded = load_pipeline(options(model_path=str(tmp_path / "model" / "29x480p")), cpu)
    assert {key: getattr(loaded.defaults, key) for key in given} == given
    assert loaded.defaults.negative_prompt == NEGATIVE_PROMPT
    assert (loaded.defaults.num_frames, loaded.defaults.height) == (29, 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not a JSON object"),
        ('{"guidance": 2}', "unknown key 'guidance'"),
        ('{"fps": "12"}', "fps is '12'"),
        ('{"num_frames": 2.5}', "num_frames is 2.5"),
        ('{"height": true}', "height is True"),
        ('{"fps": -1}', "must be positive"),
        ('{"prompt_template": "cat"}', "no {} for the prompt"),
        ("{", r"defaults\.json"),
    ],
)
def test_wrong_defaults_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "defaults.json"
    file.write_text(content)
    with pytest.raises(CheckpointError, match=message):
        ModelDefaults().updated(file)


def test_options_reach_the_parts(release: Path, cpu: Device) -> None:
    path = str(release / "29x480p")
    plain = load_pipeline(options(model_path=path), cpu).pipeline
    assert plain.vae.tiling is None
    assert not any(parameter.requires_grad for parameter in plain.transformer.parameters())
    tiled = load_pipeline(
        options(model_path=path, enable_tiling=True, tile_overlap_factor=0.5, sampler="PNDM"), cpu
    ).pipeline
    assert (tiled.vae.tiling.latent_size, tiled.vae.tiling.overlap) == (64, 0.5)
    assert type(tiled.scheduler).__name__ == "PNDMScheduler"
    small = load_pipeline(options(model_path=path, save_memory=True), cpu).pipeline
    assert small.vae.tiling.latent_size == 32
    half = load_pipeline(options(model_path=path), Device.open("cpu", dtype="bfloat16")).pipeline
    assert half.transformer.dtype == half.vae.dtype == half.text_encoder.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("way", "message"),
    [
        ({"version": "93x720p"}, "93x720p"),
        ({}, r"--version: 29x480p, text_encoder, vae"),
        ({"version": "vae"}, "CausalVAEModel"),
        ({"version": "29x480p", "ae_path": "nowhere"}, "nowhere"),
        ({"version": "29x480p", "text_encoder_name": "no where"}, "no where"),
    ],
)
def test_what_is_missing_is_named(
    release: Path, cpu: Device, way: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_pipeline(options(model_path=str(release), **way), cpu)


def test_a_transformer_without_autoencoder_is_refused(
    release: Path, cpu: Device, tmp_path: Path
) -> None:
    shutil.copytree(release / "29x480p", tmp_path / "29x480p")
    with pytest.raises(CheckpointError, match="--ae-path"):
        load_pipeline(options(model_path=str(tmp_path / "29x480p")), cpu)
