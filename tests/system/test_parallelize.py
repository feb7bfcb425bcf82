"""The transformer on 2 and 4 real gloo processes gives what one process gives."""

from __future__ import annotations

from pathlib import Path

import models_on_ranks
import pytest
import torch
from launching import run_ranks
from safetensors.torch import load_file
from torch import Tensor

from osp_opt.base.errors import OptionError, ShapeError
from osp_opt.cache.policy import CachePolicy
from osp_opt.model.parallelize import ParallelTransformer, parallelize_transformer
from osp_opt.model.release import load_transformer
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel, RankGroup
from osp_opt.system.ranks import Layout, layouts_for

TOLERANCE = 1e-5  # of float32 latents of any layout
VIDEO_TOLERANCE = 3e-5  # of decoded values, as for the golden ones


@pytest.fixture(scope="module")
def golden_folder() -> Path:
    return Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def alone(golden_folder: Path) -> dict[str, Tensor]:
    with torch.no_grad():
        transformer = load_transformer(golden_folder / "transformer" / "main")
        return models_on_ranks.results(golden_folder, transformer)


@pytest.fixture(scope="module")
def tiled_alone(golden_folder: Path) -> dict[str, Tensor]:
    with torch.no_grad():
        return models_on_ranks.tiled_video(golden_folder)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(
    request: pytest.FixtureRequest, golden_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Tensor]]:
    """What every rank of 2, then 4, processes made."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(models_on_ranks.main, request.param, golden_folder, folder, logs=folder)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(request.param)]


@pytest.mark.parametrize("name", [*models_on_ranks.CASES, "odd_frames", "cached"])
def test_every_layout_gives_the_result_of_one_process(
    name: str, ranks: list[dict[str, Tensor]], alone: dict[str, Tensor]
) -> None:
    for layout in layouts_for(len(ranks)):
        for made in ranks:
            torch.testing.assert_close(
                made[f"{layout}/{name}"], alone[name], rtol=0, atol=TOLERANCE, msg=str(layout)
            )


@pytest.mark.parametrize("case", models_on_ranks.CASES)
def test_every_layout_gives_the_official_result(
    case: str, ranks: list[dict[str, Tensor]], golden_folder: Path
) -> None:
    official = load_file(golden_folder / "transformer" / f"{case}.safetensors")["out.output"]
    for layout in layouts_for(len(ranks)):
        torch.testing.assert_close(ranks[-1][f"{layout}/{case}"], official, rtol=0, atol=TOLERANCE)


def test_bfloat16_stays_within_50_db(ranks: list[dict[str, Tensor]], golden_folder: Path) -> None:
    transformer = load_transformer(golden_folder / "transformer" / "main", torch.bfloat16)
    with torch.no_grad():
        expected = models_on_ranks.half_precision(transformer)
    peak = expected.max() - expected.min()
    for layout in layouts_for(len(ranks)):
        error = (ranks[0][f"{layout}/bfloat16"] - expected).square().mean()
        assert error <= peak**2 * 1e-5, layout  # 50 dB


def test_tiles_spread_over_ranks_give_the_same_latents_and_video(
    ranks: list[dict[str, Tensor]], tiled_alone: dict[str, Tensor]
) -> None:
    for made in ranks:
        for name, video in tiled_alone.items():
            torch.testing.assert_close(made[name], video, rtol=0, atol=VIDEO_TOLERANCE)


def test_the_cached_run_reuses_blocks(alone: dict[str, Tensor], golden_folder: Path) -> None:
    # Otherwise equality of the cached runs would say nothing about the cache.
    transformer = load_transformer(golden_folder / "transformer" / "main")
    never = CachePolicy.four_field(1, 2, models_on_ranks.CACHED_STEPS - 1, 2)
    with torch.no_grad():
        uncached = models_on_ranks.cached_run(transformer, never)
    assert (uncached - alone["cached"]).abs().max() > 100 * TOLERANCE


def test_one_rank_keeps_the_model_itself(golden_folder: Path) -> None:
    transformer = load_transformer(golden_folder / "transformer" / "main")
    parallel = Parallel.open(Device.open("cpu"))
    assert parallelize_transformer(transformer, parallel) is transformer


@pytest.mark.parametrize(
    ("layout", "frames", "found"),
    [
        (Layout(sp=3), 8, "4 attention heads do not divide by sp=3"),
        (Layout(sp=4), 1, "10 tokens do not divide by sp=4"),
    ],
)
def test_uneven_heads_or_tokens_are_refused_with_what_would_work(
    layout: Layout, frames: int, found: str, golden_folder: Path
) -> None:
    transformer = load_transformer(golden_folder / "transformer" / "main")
    model = ParallelTransformer(transformer, Parallel(world_size=layout.sp, layout=layout))
    latents = torch.zeros(2, 4, frames, 4, 10)
    with pytest.raises(OptionError, match=found) as caught:
        model(latents, torch.tensor(1.0), torch.zeros(2, 3, 32))
    assert f"dp={layout.sp},cfg=1,sp=1" in str(caught.value)


def test_an_odd_batch_has_no_guidance_branches_to_split(golden_folder: Path) -> None:
    transformer = load_transformer(golden_folder / "transformer" / "main")
    layout = Layout(cfg=2)
    model = ParallelTransformer(
        transformer, Parallel(world_size=2, layout=layout, cfg=RankGroup(0, 2))
    )
    with pytest.raises(ShapeError, match="cfg=1"):
        model(torch.zeros(3, 4, 2, 8, 10), torch.tensor(1.0), torch.zeros(3, 5, 32))
