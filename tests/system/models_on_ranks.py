"""Run on several ranks: the golden models in every layout of these ranks.

Arguments: the golden folder and a folder for the results, one safetensors file per rank.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.model.parallelize import ParallelTransformer, parallelize_transformer, spread_tiles
from osp_opt.model.release import load_transformer, load_vae
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.model.vae.tiling import Tiling, run_tiles
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel, RankGroup
from osp_opt.system.ranks import Layout, layouts_for

CASES = ("case_a_video", "case_b_image")
CACHED_STEPS = 6
POLICY = CachePolicy.four_field(1, 2, 1, 2)


def odd_frames() -> dict[str, Tensor]:
    """Inputs with 7 latent frames of 4 x 5 patches, whose thirds and halves cut frames."""
    generator = torch.Generator().manual_seed(5)
    return {
        "hidden_states": torch.randn(2, 4, 7, 8, 10, generator=generator),
        "timestep": torch.tensor([500.5, 500.5]),
        "encoder_hidden_states": torch.randn(2, 12, 32, generator=generator),
        "encoder_attention_mask": (torch.arange(12) < torch.tensor([[3], [9]])).long(),
    }


def cached_run(model: OpenSoraT2V | ParallelTransformer, policy: CachePolicy = POLICY) -> Tensor:
    """Several steps from odd_frames() in which a block cache reuses half of them."""
    inputs = odd_frames()
    cache = BlockCache(policy)
    x = inputs["hidden_states"]
    text = model.encode_text(inputs["encoder_hidden_states"], inputs["encoder_attention_mask"])
    for step in range(CACHED_STEPS):
        eps = model(x, inputs["timestep"] - step, text=text, blocks=cache.at(step)).sample
        x = x - 0.1 * eps
    return x


def golden_inputs(golden: Path, case: str) -> dict[str, Tensor]:
    """The inputs of one golden case under the names of the forward's parameters."""
    tensors = load_file(golden / "transformer" / f"{case}.safetensors")
    return {name[3:]: tensor for name, tensor in tensors.items() if name.startswith("in.")}


def half_precision(model: OpenSoraT2V | ParallelTransformer) -> Tensor:
    """odd_frames() through the model in bfloat16; the result in float32."""
    inputs = odd_frames()
    inputs["hidden_states"] = inputs["hidden_states"].bfloat16()
    return model(**inputs).sample.float()


def results(golden: Path, model: OpenSoraT2V | ParallelTransformer) -> dict[str, Tensor]:
    """What the tests compare in float32, by name."""
    made = {case: model(**golden_inputs(golden, case)).sample for case in CASES}
    made["odd_frames"] = model(**odd_frames()).sample
    made["cached"] = cached_run(model)
    return made


def tiled_video(golden: Path, group: RankGroup | None = None) -> dict[str, Tensor]:
    """The golden VAE's tiled encode and decode, tiles spread over ``group``."""
    vae = load_vae(golden / "vae" / "d4_4x8x8")
    vae.enable_tiling(Tiling(32, 4, sample_frames=5, latent_frames=2, overlap=0.25))
    map_tiles = run_tiles if group is None else spread_tiles(group)
    generator = torch.Generator().manual_seed(7)
    mean = vae.encode(torch.randn(1, 3, 9, 40, 72, generator=generator), map_tiles).latent_dist.mean
    return {"vae_mean": mean, "vae_video": vae.decode(mean, map_tiles).sample}


def main(golden: Path, out: Path) -> None:
    torch.set_grad_enabled(False)
    parallel = Parallel.open(Device.open("cpu"), timeout_s=120)
    transformer = load_transformer(golden / "transformer" / "main")
    made: dict[str, Tensor] = {}
    for layout in layouts_for(parallel.world_size):
        model = parallelize_transformer(transformer, parallel.with_layout(layout))
        made |= {f"{layout}/{name}": x for name, x in results(golden, model).items()}
    spread = parallel.with_layout(Layout(sp=parallel.world_size))
    made |= tiled_video(golden, spread.replica)
    transformer.bfloat16()
    for layout in layouts_for(parallel.world_size):
        model = parallelize_transformer(transformer, parallel.with_layout(layout))
        made[f"{layout}/bfloat16"] = half_precision(model)
    save_file(
        {name: x.contiguous() for name, x in made.items()}, out / f"{parallel.rank}.safetensors"
    )
    parallel.close()
