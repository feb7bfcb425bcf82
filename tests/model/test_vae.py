"""The VAE against the official code's results (tests/golden/vae)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from osp_opt.base.errors import CheckpointError
from osp_opt.model.vae.autoencoder import VAE_SCALE, CausalVAEModel
from osp_opt.model.vae.tiling import Tiling

GOLDEN = Path(__file__).parents[1] / "golden" / "vae"
ENCODE_ATOL = 1e-5
DECODE_ATOL = 3e-5


def load(folder: str) -> CausalVAEModel:
    config = json.loads((GOLDEN / folder / "config.json").read_text())
    vae = CausalVAEModel.from_config(config).eval()
    ckpt = GOLDEN / folder / "checkpoint.ckpt"
    if ckpt.exists():
        state = torch.load(ckpt, weights_only=True)["ema_state_dict"]
        state = {key.replace("module.", ""): value for key, value in state.items()}
    else:
        state = load_file(GOLDEN / folder / "diffusion_pytorch_model.safetensors")
    vae.load_state_dict(state)
    return vae


def tiling_of(case: str) -> Tiling:
    files = json.loads((GOLDEN.parent / "index.json").read_text())["files"]
    named = next(f for f in files if f["path"] == f"vae/{case}.safetensors")["tiling"]
    return Tiling(
        sample_size=named["tile_sample_min_size"],
        latent_size=named["tile_latent_min_size"],
        sample_frames=named["tile_sample_min_size_t"],
        latent_frames=named["tile_latent_min_size_t"],
        overlap=named["tile_overlap_factor"],
    )


@pytest.mark.parametrize(
    ("folder", "case", "inputs"),
    [
        ("d4_4x8x8", "d4_untiled", "d4_untiled"),
        ("d4_4x8x8", "d4_image", "d4_image"),
        ("d4_4x8x8", "d4_tiled", "d4_untiled"),
        ("d4_4x8x8", "d4_tiled_time_only", "d4_tiled_time_only"),
        ("default_args", "default_untiled", "default_untiled"),
        ("default_args", "default_image", "default_image"),
    ],
)
@torch.no_grad()
def test_encode_and_decode_match_the_official_code(folder: str, case: str, inputs: str) -> None:
    golden = load_file(GOLDEN / f"{case}.safetensors")
    video = load_file(GOLDEN / f"{inputs}.safetensors")["in.video"]
    vae = load(folder)
    if "tiled" in case and "untiled" not in case:
        vae.enable_tiling(tiling_of(case))
    posterior = vae.encode(video).latent_dist
    torch.testing.assert_close(posterior.mean, golden["out.mean"], atol=ENCODE_ATOL, rtol=0)
    torch.testing.assert_close(posterior.logvar, golden["out.logvar"], atol=ENCODE_ATOL, rtol=0)
    decoded = vae.decode(golden["out.mean"]).sample
    torch.testing.assert_close(decoded, golden["out.decode_mean"], atol=DECODE_ATOL, rtol=0)


@torch.no_grad()
def test_scaled_latents_match_the_official_wrapper() -> None:
    golden = load_file(GOLDEN / "wrapper.safetensors")
    vae = load("d4_4x8x8")
    posterior = vae.encode(golden["in.video"]).latent_dist
    latents = (posterior.mean + posterior.std * golden["in.sample_noise"]) * VAE_SCALE
    torch.testing.assert_close(latents, golden["out.encode"], atol=ENCODE_ATOL, rtol=0)
    video = vae.decode(golden["in.latents"] / VAE_SCALE).sample
    torch.testing.assert_close(
        video.transpose(1, 2), golden["out.decode_btchw"], atol=DECODE_ATOL, rtol=0
    )


@torch.no_grad()
def test_tiling_can_be_taken_back() -> None:
    golden = load_file(GOLDEN / "d4_untiled.safetensors")
    vae = load("d4_4x8x8")
    vae.enable_tiling(tiling_of("d4_tiled"))
    vae.disable_tiling()
    mean = vae.encode(golden["in.video"]).latent_dist.mean
    torch.testing.assert_close(mean, golden["out.mean"], atol=ENCODE_ATOL, rtol=0)


@torch.no_grad()
def test_tiles_may_be_run_in_any_order() -> None:
    """What spreading tiles over ranks relies on: only the order of the results counts."""
    golden = load_file(GOLDEN / "d4_tiled.safetensors")
    vae = load("d4_4x8x8")
    vae.enable_tiling(tiling_of("d4_tiled"))

    def backwards(function, tiles):  # type: ignore[no-untyped-def]
        return [function(tile) for tile in reversed(tiles)][::-1]

    decoded = vae.decode(golden["out.mean"], map_tiles=backwards).sample
    torch.testing.assert_close(decoded, golden["out.decode_mean"], atol=DECODE_ATOL, rtol=0)


def test_released_compression_is_4x8x8() -> None:
    vae = load("d4_4x8x8")
    with torch.no_grad():
        latents = vae.encode(torch.zeros(1, 3, 29, 64, 64)).latent_dist.mode()
        assert latents.shape == (1, 4, 8, 8, 8)
        assert vae.decode(latents).sample.shape == (1, 3, 29, 64, 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_released_structure_encodes_and_decodes_in_half_precision(
    tiny_checkpoint: Path, dtype: torch.dtype
) -> None:
    vae = CausalVAEModel.from_pretrained(tiny_checkpoint / "vae")
    video = torch.rand(1, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        exact = vae.encode(video).latent_dist.mean
        whole = vae.decode(exact).sample
        vae = vae.to(dtype)
        found = vae.encode(video.to(dtype)).latent_dist.mean
        decoded = vae.decode(exact.to(dtype)).sample
    assert found.dtype == decoded.dtype == dtype
    for one, wanted in ((found, exact), (decoded, whole)):
        assert float((one - wanted).square().mean().sqrt()) < 0.2 * float(wanted.std())


def test_unknown_block_is_refused_by_name() -> None:
    config = json.loads((GOLDEN / "d4_4x8x8" / "config.json").read_text())
    config["encoder_attention"] = "NoSuchBlock"
    with pytest.raises(CheckpointError, match="encoder_attention names 'NoSuchBlock'"):
        CausalVAEModel.from_config(config)


@torch.no_grad()
def test_diffusers_forms() -> None:
    vae = load("d4_4x8x8")
    video = load_file(GOLDEN / "d4_untiled.safetensors")["in.video"]
    (posterior,) = vae.encode(video, return_dict=False)
    (decoded,) = vae.decode(posterior.mode(), return_dict=False)
    assert torch.equal(vae(video).sample, decoded)
    drawn = posterior.sample(torch.Generator().manual_seed(1))
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn, posterior.mean + posterior.std * noise)
    again = vae(video, sample_posterior=True, generator=torch.Generator().manual_seed(1)).sample
    assert torch.equal(again, vae.decode(drawn).sample)


@torch.no_grad()
def test_slicing_and_tiling_are_switches() -> None:
    vae = load("d4_4x8x8")
    video = torch.randn(2, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = vae(video).sample
    vae.enable_slicing()
    torch.testing.assert_close(vae(video).sample, whole, atol=1e-4, rtol=0)
    vae.disable_slicing()
    vae.use_tiling = True
    assert vae.tiling == Tiling()
    vae.use_tiling = False
    assert vae.tiling is None


@pytest.mark.parametrize("source", ["folder", "subfolder", "safetensors"])
@torch.no_grad()
def test_from_pretrained_reads_every_official_folder(source: str, tmp_path: Path) -> None:
    """The released folder holds a .ckpt, which diffusers knows nothing of."""
    expected = load("d4_4x8x8")
    if source == "folder":
        found = CausalVAEModel.from_pretrained(GOLDEN / "d4_4x8x8")
    elif source == "subfolder":
        found = CausalVAEModel.from_pretrained(str(GOLDEN), subfolder="d4_4x8x8")
    else:
        expected.save_pretrained(tmp_path)
        found = CausalVAEModel.from_pretrained(tmp_path, torch_dtype=torch.float32)
    assert not found.training
    state = expected.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in found.state_dict().items())
    half = CausalVAEModel.from_pretrained(GOLDEN / "d4_4x8x8", torch_dtype=torch.float16)
    assert half.dtype == torch.float16


def test_from_pretrained_refuses_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        CausalVAEModel.from_pretrained(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="quantization_config"):
        CausalVAEModel.from_pretrained(GOLDEN / "d4_4x8x8", quantization_config=object())
