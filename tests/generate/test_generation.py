"""A VideoMaker encodes every text once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from osp_opt.base.progress import Progress
from osp_opt.options import SampleOptions
from osp_opt.pipelines.open_sora_plan import VideoMaker
from osp_opt.system.context import WorkerContext
from osp_opt.system.device import Device
from osp_opt.system.parallel import Parallel


def test_each_text_is_encoded_once(model_flags: dict[str, Any], tmp_path: Path) -> None:
    device = Device.open("cpu")
    context = WorkerContext(device, Parallel.open(device), tmp_path, Progress(0))
    maker = VideoMaker(SampleOptions(**model_flags, negative_prompt="blurry"), context)
    encoded = 0

    def count(_module: Any, _arguments: Any, output: Any) -> None:
        nonlocal encoded
        encoded += len(output[0])

    hook = maker.pipeline.text_encoder.register_forward_hook(count)
    prompts = ["a cat", "a dog on a ball", "a cat"]
    found = [maker.embed(prompt) for prompt in prompts]
    assert encoded == 3, "two prompts and the negative one"
    hook.remove()
    for prompt, embeddings in zip(prompts, found, strict=True):
        text = maker.loaded.defaults.prompt_template.format(prompt)
        expected = maker.pipeline.encode_prompts([text], "blurry", maker.max_sequence_length)
        assert torch.equal(embeddings.mask, expected.mask)
        torch.testing.assert_close(embeddings.embeds, expected.embeds, atol=1e-5, rtol=0)
        assert embeddings.negative_embeds is not None
        assert expected.negative_embeds is not None
        torch.testing.assert_close(
            embeddings.negative_embeds, expected.negative_embeds, atol=1e-5, rtol=0
        )
        assert torch.equal(embeddings.negative_mask, expected.negative_mask)
