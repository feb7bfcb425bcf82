"""A layout that the model or the shape cannot divide is refused before anything is sampled."""

from __future__ import annotations

from typing import Any

import pytest

from osp_opt.base.errors import OptionError
from osp_opt.base.progress import Progress
from osp_opt.options import SampleOptions
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel
from osp_opt.system.ranks import Layout, Workload, check_layout, parse_layout


@pytest.mark.parametrize(
    ("layout", "guidance", "found"),
    [
        (Layout(sp=4), 2.0, "2 attention heads do not divide by sp=4"),
        (Layout(cfg=2, sp=2), 1.0, "two guidance branches"),
    ],
)
def test_what_cannot_be_divided_is_refused_with_layouts_that_work(
    model_flags: dict[str, Any], layout: Layout, guidance: float, found: str
) -> None:
    options = SampleOptions(**{**model_flags, "guidance_scale": guidance})
    parallel = Parallel(world_size=4, layout=layout)
    context = WorkerContext(Device.open("cpu"), parallel, options.run_dir, Progress(0))
    with pytest.raises(OptionError, match=found) as caught:
        VideoMaker(options, context)
    offered = str(caught.value).split("work: ")[1].split("; ")
    for text in offered:
        other = parse_layout(text, 4)
        assert other is not None
        check_layout(other, Workload(heads=2, tokens=2, guided=guidance > 1))
