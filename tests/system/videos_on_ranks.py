"""Run on several ranks: the bundled model's videos in every layout of these ranks.

Argument: a folder for the results, one safetensors file per rank.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from osp_opt.base.progress import Progress
from osp_opt.cache.policy import CachePolicy
from osp_opt.cache.runtime import BlockCache
from osp_opt.calibration.recorder import CalibrationRecorder
from osp_opt.model.vae.tiling import Tiling
from osp_opt.options import SampleOptions
from osp_opt.pipelines.load import LoadedModel, load_pipeline
from osp_opt.pipelines.maker import Request
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.sampling.schedule import TimestepSchedule
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel
from osp_opt.system.ranks import layouts_for

REQUESTS = [
    Request("a red square moves left on a white background", 3),
    Request("a blue circle stays still on a gray background", 4),
]
SCHEDULE = TimestepSchedule((999.0, 640.25, 433.0, 77.5, 12.0))
POLICY = CachePolicy.four_field(1, 2, 1, 2)
FRAMES = {"odd": 9, "image": 1}  # 3 latent frames, and one
CORNER = 4  # of the latents, in each direction, is decoded: four tiles


def load() -> LoadedModel:
    """The bundled model, its videos decoded in tiles."""
    loaded = load_pipeline(SampleOptions(), Device.open("cpu"))
    loaded.pipeline.vae.enable_tiling(Tiling(24, 3, 5, 2, overlap=1 / 3))
    return loaded


def videos(parallel: Parallel, loaded: LoadedModel) -> dict[str, Tensor]:
    """Latents and some pixels of every request, made by the replicas that they were dealt to."""
    made: dict[str, Tensor] = {}
    for name, frames in FRAMES.items():
        options = SampleOptions(num_frames=frames, allow_untrained_shape=True)
        context = WorkerContext(Device.open("cpu"), parallel, Path(), Progress(parallel.rank))
        maker = VideoMaker(options, context, loaded)
        for request in parallel.share(REQUESTS):
            cache = BlockCache(POLICY)
            latents = maker.denoise(request, SCHEDULE, cache).latents
            made[f"{name} {request.seed} latents"] = latents
            pixels = maker.decode(latents[..., :CORNER, :CORNER].contiguous())
            made[f"{name} {request.seed} pixels"] = torch.from_numpy(pixels)
        made |= recorded(maker, parallel, name)
    return made


def recorded(maker: VideoMaker, parallel: Parallel, name: str) -> dict[str, Tensor]:
    """What `calibrate` keeps of one video: a part of its tokens, an odd number of them."""
    recorder = CalibrationRecorder(
        len(SCHEDULE), maker.num_blocks, guidance_scale=2.0, max_tokens=13, spread=parallel
    )
    maker.denoise(REQUESTS[0], SCHEDULE, recorder=recorder)
    found = recorder.result()
    assert found.signals is not None
    kept = {
        "step gram": found.step_gram,
        "block gram": found.block_gram,
        "guided gram": found.guided_block_gram,
        "residual ratio": found.signals.residual_ratio,
        "input change": found.signals.input_change,
        "output change": found.signals.output_change,
    }
    return {f"{name} {each} statistics": torch.from_numpy(x) for each, x in kept.items()}


def main(out: Path) -> None:
    opened = Parallel.open(Device.open("cpu"), timeout_s=120)
    loaded = load()
    made: dict[str, Tensor] = {}
    for layout in layouts_for(opened.world_size):
        found = videos(opened.with_layout(layout), loaded)
        made |= {f"{layout}/{name}": tensor.contiguous() for name, tensor in found.items()}
    save_file(made, out / f"{opened.rank}.safetensors")
    opened.close()
