"""Which files of a folder are the weights, and what may stand in a pickled one."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from osp_opt.base.errors import CheckpointError
from osp_opt.model.checkpoint import resolve_folder
from osp_opt.model.release import load_transformer, load_vae
from osp_opt.model.text.encoder import load_text_encoder
from osp_opt.model.weights import find_weights, read_state_dict

GOLDEN = Path(__file__).parents[1] / "golden"
STEM = "diffusion_pytorch_model"


def touch(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).write_bytes(b"")
    return [folder / name for name in names]


def shards(stem: str, total: int = 3, suffix: str = "safetensors") -> list[str]:
    return [f"{stem}-{n:05d}-of-{total:05d}.{suffix}" for n in range(1, total + 1)]


@pytest.mark.parametrize(
    "wanted",
    [
        [f"{STEM}.safetensors"],
        shards(STEM),
        shards("model", 2),
        shards("pytorch_model", 2, "bin"),
        [f"{STEM}.fp16.safetensors"],
        shards(f"{STEM}.fp16"),
        ["epoch3.ckpt"],
    ],
    ids=lambda names: names[0],
)
def test_the_weights_are_found_without_an_index_and_hidden_files_do_not_count(
    tmp_path: Path, wanted: list[str]
) -> None:
    files = touch(tmp_path, *wanted)
    for file in files:  # as macOS leaves them on other file systems
        touch(tmp_path, f"._{file.name}")
    touch(tmp_path, "._x.ckpt", f".{STEM}.safetensors.index.json", ".DS_Store")
    assert find_weights(tmp_path) == files


def test_the_usual_name_wins_over_variants(tmp_path: Path) -> None:
    usual = touch(tmp_path, *shards(STEM, 2))
    touch(tmp_path, *shards(f"{STEM}.fp16", 2), f"{STEM}.non_ema.safetensors")
    assert find_weights(tmp_path) == usual
    (single,) = touch(tmp_path, f"{STEM}.bin", f"{STEM}.fp16.bin")[:1]
    for file in tmp_path.glob("*.safetensors"):
        file.unlink()
    assert find_weights(tmp_path) == [single]


@pytest.mark.parametrize(
    "name", [f"{STEM}.safetensors.index.fp16.json", "model.safetensors.index.json"]
)
def test_the_index_of_a_variant_counts(tmp_path: Path, name: str) -> None:
    files = touch(tmp_path, *shards(f"{STEM}.fp16", 2))
    index = {"weight_map": {"a": files[0].name, "b": files[1].name}}
    (tmp_path / name).write_text(json.dumps(index))
    assert find_weights(tmp_path) == files
    files[1].unlink()
    with pytest.raises(CheckpointError, match=rf"1 of 2 weight files are missing: {files[1].name}"):
        find_weights(tmp_path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (shards(STEM)[:2], rf"1 of 3 weight files are missing: {STEM}-00003-of-00003.safetensors"),
        (shards(STEM, 30)[7:8], r"29 of 30 .* and 26 more; download them"),
        ([*shards(STEM, 2), *shards(STEM, 3)], "are of different checkpoints"),
        (["a.safetensors", "b.safetensors"], "a, b all look like the weights; move the others"),
        (["a.ckpt", "b.ckpt"], "a.ckpt, b.ckpt all look like"),
        (["config.json"], "no weights found"),
    ],
)
def test_what_is_missing_or_too_many_is_named(
    tmp_path: Path, names: list[str], reason: str
) -> None:
    touch(tmp_path, *names)
    with pytest.raises(CheckpointError, match=reason) as caught:
        find_weights(tmp_path)
    assert "leave one" not in str(caught.value), "which would destroy a checkpoint"


@pytest.mark.parametrize("name", [f"{STEM}.safetensors", "a.ckpt", "a.bin"])
def test_pipes_and_dangling_links_are_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_state_dict(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to("gone")
    with pytest.raises(CheckpointError, match="a link to nothing"):
        read_state_dict(tmp_path)


def test_shards_without_an_index_are_one_model(tmp_path: Path) -> None:
    source = GOLDEN / "transformer" / "interp"
    shutil.copy(source / "config.json", tmp_path)
    state = load_file(source / f"{STEM}.safetensors")
    for number, name in enumerate(shards(STEM, 2)):
        save_file({k: state[k] for k in sorted(state)[number::2]}, tmp_path / name)
    loaded = load_transformer(tmp_path).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


HARMLESS: dict[str, Any] = {
    "scalar": np.float64(1.5),
    "scalars": [np.int64(1), np.float32(2), np.bool_(True), np.array(3, "float16")[()]],
    "array": np.arange(3.0),
    "namespace": argparse.Namespace(lr=1e-4, path=Path("a/b"), inner=SimpleNamespace(x=1)),
    "defaultdict": defaultdict(list, {"a": [1]}),
    "nested": {"args": argparse.Namespace(at=np.float64(1)), "o": OrderedDict(a=1)},
    "defaultdict of dicts": defaultdict(dict, {0: {"step": np.int64(1)}}),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_objects_beside_tensors_pass(tmp_path: Path, kind: str) -> None:
    content = {"state_dict": {"w": torch.ones(2)}, "hyper": HARMLESS[kind], "epoch": 3}
    torch.save(content, tmp_path / "a.ckpt")
    assert read_state_dict(tmp_path)["w"].tolist() == [1.0, 1.0]


class Unknown:
    """Somebody's class."""


def test_others_end_in_a_sentence_that_says_how_to_convert(tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "x": Unknown()}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"Unknown.*could run code.*torch\.save") as caught:
        read_state_dict(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["nobody/nothing/", "nobody/nothing///"])
def test_a_hub_id_with_a_slash_behind_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"^nobody/nothing: .*the hub did not deliver it"):
        resolve_folder(name, cache_dir=tmp_path)
    assert resolve_folder(f"{tmp_path}/") == tmp_path
    with pytest.raises(CheckpointError, match=r"^text encoder nobody/nothing: .*did not deliver"):
        load_text_encoder(name, cache_dir=tmp_path)


def test_a_pipe_in_a_text_encoder_is_not_waited_for(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "pipeline" / "text_encoder", tmp_path / "t")
    (tmp_path / "t" / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "t" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a regular file"):
        load_text_encoder(tmp_path / "t")


@pytest.mark.parametrize(
    ("part", "change", "reason"),
    [
        ("transformer", {"num_layers": 100_000}, "num_layers is 100000"),
        ("transformer", {"num_layers": "2"}, "num_layers"),
        ("transformer", {"sample_size": [2**40, 8]}, "sample_size is"),
        ("transformer", {"num_attention_heads": True}, "num_attention_heads"),
        ("transformer", {"caption_channels": 1.5}, "caption_channels"),
        ("vae", {"num_res_blocks": 10**7}, "num_res_blocks is"),
        ("vae", {"hidden_size_mult": [1] * 10_000}, "hidden_size_mult lists 10000"),
        ("vae", {"encoder_resnet_blocks": 7}, "encoder_resnet_blocks"),
    ],
)
def test_configs_are_typed_and_bounded(
    part: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    source = GOLDEN / ("transformer/interp" if part == "transformer" else "vae/d4_4x8x8")
    shutil.copytree(source, tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **change}))
    load = load_transformer if part == "transformer" else load_vae
    with pytest.raises(CheckpointError, match=rf"config\.json: cannot build .*{reason}"):
        load(tmp_path / "m")
