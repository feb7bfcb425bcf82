"""Checkpoints: the released layouts load, and whatever is wrong is said in one line."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from osp_opt.base.errors import CheckpointError
from osp_opt.model.checkpoint import (
    find_weights,
    model_fingerprint,
    read_state_dict,
    resolve_folder,
)
from osp_opt.model.release import load_transformer, load_vae

GOLDEN = Path(__file__).parents[1] / "golden"
MAIN = GOLDEN / "transformer" / "main"
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small transformer checkpoint that a test may damage."""
    target = tmp_path / "29x480p"
    shutil.copytree(GOLDEN / "transformer" / "interp", target)
    for file in target.iterdir():
        file.chmod(0o640)
    return target


def shard(folder: Path) -> list[Path]:
    """Rewrite a checkpoint as three shards with an index, as large ones are released."""
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = [f"diffusion_pytorch_model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    placed = {key: names[index % 3] for index, key in enumerate(sorted(state))}
    for name in names:
        save_file({k: state[k] for k in state if placed[k] == name}, folder / name)
        (folder / name).chmod(0o640)
    index = folder / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return [folder / name for name in names]


def save_ckpt(path: Path, content: object) -> None:
    torch.save(content, path)
    path.chmod(0o640)


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_loads_what_the_file_holds() -> None:
    model = load_transformer(MAIN)
    assert not model.training
    assert model.device.type == "cpu"
    assert same(model.state_dict(), load_file(MAIN / WEIGHTS))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_loads_in_the_type_asked_for() -> None:
    model = load_transformer(MAIN, torch.bfloat16)
    expected = {key: value.bfloat16() for key, value in load_file(MAIN / WEIGHTS).items()}
    assert same(model.state_dict(), expected)


@pytest.mark.parametrize("name", ["d4_4x8x8", "default_args"])
def test_loads_both_kinds_of_vae(name: str) -> None:
    vae = load_vae(GOLDEN / "vae" / name)
    assert sum(parameter.numel() for parameter in vae.parameters()) > 0
    assert all(torch.isfinite(parameter).all() for parameter in vae.parameters())


def test_shards_are_one_checkpoint(folder: Path) -> None:
    whole = read_state_dict(folder)
    shards = shard(folder)
    assert find_weights(folder) == shards
    assert same(read_state_dict(folder), whole)
    assert same(load_transformer(folder).state_dict(), whole)


def test_ckpt_wins_over_safetensors_and_averages_over_raw(folder: Path) -> None:
    state = read_state_dict(folder)
    shifted = {amount: {k: v + amount for k, v in state.items()} for amount in (1, 2, 3)}
    averaged = {f"module.{key}": value for key, value in shifted[3].items()}
    raw = {"gen_model": shifted[2], "dics_model": {"w": torch.zeros(1)}}
    loss = {"loss.discriminator.weight": torch.zeros(2)}
    ckpt = folder / "epoch.ckpt"
    for content, amount in [
        (shifted[1] | loss, 1),
        ({"state_dict": shifted[1] | loss}, 1),
        ({"state_dict": raw}, 2),
        ({"state_dict": raw, "ema_state_dict": {}}, 2),
        ({"state_dict": raw, "ema_state_dict": averaged}, 3),
    ]:
        save_ckpt(ckpt, content)
        assert same(read_state_dict(folder), shifted[amount])


def test_pickled_bin_weights_load(folder: Path) -> None:
    state = read_state_dict(folder)
    (folder / WEIGHTS).unlink()
    save_ckpt(folder / "diffusion_pytorch_model.bin", state)
    assert same(load_transformer(folder).state_dict(), state)


def test_saving_over_a_loaded_checkpoint_leaves_the_model_whole(folder: Path) -> None:
    model = load_transformer(folder)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    (folder / WEIGHTS).write_bytes(b"")
    assert same(model.state_dict(), before)


class Payload:
    """Pickles into a call that leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.trace),)


def test_pickled_code_is_not_run(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    save_ckpt(folder / "epoch.ckpt", {"state_dict": Payload(trace)})
    with pytest.raises(CheckpointError, match=r"epoch\.ckpt: holds Python objects besides tensors"):
        read_state_dict(folder)
    assert not trace.exists()


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "config of a VAE": (
        lambda f: edit_config(f, _class_name="CausalVAEModel"),
        "config of a CausalVAEModel, expected a OpenSoraT2V",
    ),
    "config with nonsense": (lambda f: edit_config(f, num_layers="two"), "cannot build"),
    "more layers than weights": (
        lambda f: edit_config(f, num_layers=3),
        r"21 missing \(transformer_blocks\.2\.attn1\.to_k\.bias, .* and 18 more\)",
    ),
    "fewer layers than weights": (lambda f: edit_config(f, num_layers=1), "21 unexpected"),
    "another width": (lambda f: edit_config(f, caption_channels=21), "1 of another shape"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no weights found"),
    "empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), "truncated or not a weight file"),
    "truncated file": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-100]),
        "truncated or not a weight file",
    ),
    "LFS pointer": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid"),
        "git lfs pull",
    ),
    "truncated ckpt": (
        lambda f: (
            save_ckpt(f / "a.ckpt", {"w": torch.zeros(1000)}),
            (f / "a.ckpt").write_bytes((f / "a.ckpt").read_bytes()[:2000]),
        ),
        "a.ckpt: truncated",
    ),
    "ckpt that is text": (lambda f: (f / "a.ckpt").write_text("hello"), "a.ckpt: truncated"),
    "ckpt without tensors": (
        lambda f: save_ckpt(f / "a.ckpt", {"epoch": 3}),
        "not a state dict of tensors",
    ),
    "two ckpts": (
        lambda f: [save_ckpt(f / f"{n}.ckpt", {}) for n in "ab"],
        "a.ckpt, b.ckpt all look like the weights",
    ),
    "missing shard": (lambda f: shard(f)[1].unlink(), "1 of 3 weight files are missing"),
    "index without map": (
        lambda f: (f / f"{WEIGHTS}.index.json").write_text("{}"),
        "no weight_map",
    ),
    "index that leaves the folder": (
        lambda f: (f / f"{WEIGHTS}.index.json").write_text(
            json.dumps({"weight_map": {"w": "../../secret.safetensors"}})
        ),
        "not a file name in the same folder",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_clear_line(folder: Path, damage: str) -> None:
    break_it, expected = DAMAGES[damage]
    break_it(folder)
    with pytest.raises(CheckpointError, match=expected) as caught:
        load_transformer(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert len(message) < 600


def test_unreadable_weights_are_reported(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    with pytest.raises(CheckpointError):
        load_transformer(folder)


def test_a_vae_is_not_a_transformer(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="config of a OpenSoraT2V, expected a CausalVAE"):
        load_vae(folder)


def test_files_others_may_change_give_a_warning(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_transformer(folder)
    (folder / WEIGHTS).chmod(0o660)
    with pytest.warns(UserWarning, match=f"{WEIGHTS}: writable by group or others.*chmod go-w"):
        load_transformer(folder)


def test_folders_and_subfolders_are_found(folder: Path) -> None:
    assert resolve_folder(folder.parent, "29x480p") == folder
    assert resolve_folder(str(folder)) == folder
    with pytest.raises(CheckpointError, match=r"93x720p: no such folder; .* has 29x480p"):
        resolve_folder(folder.parent, "93x720p")
    with pytest.raises(CheckpointError, match="no such folder, and not a hub id"):
        resolve_folder(folder / "a" / "b" / "c")


def test_a_hub_id_is_taken_from_the_cache(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline, with a cache laid out as the hub's client lays it out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cache = tmp_path / "cache"
    repo = cache / "models--owner--Model-v1.2.0"
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(folder, repo / "snapshots" / commit / "29x480p")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    model = load_transformer(resolve_folder("owner/Model-v1.2.0", "29x480p", cache))
    assert same(model.state_dict(), read_state_dict(folder))
    with pytest.raises(CheckpointError, match="owner/absent: not a folder here, and the hub"):
        resolve_folder("owner/absent", "29x480p", cache)


def test_fingerprint_follows_content(folder: Path, tmp_path: Path) -> None:
    before = model_fingerprint(folder)
    assert len(before) == 64
    assert model_fingerprint([folder]) == before
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert model_fingerprint(copy) == before
    edit_config(copy, interpolation_scale_t=3.0)
    changed_config = model_fingerprint(copy)
    data = bytearray((folder / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / WEIGHTS).write_bytes(data)
    assert len({before, changed_config, model_fingerprint(folder)}) == 3
    with pytest.raises(CheckpointError):
        model_fingerprint(tmp_path / "absent")
