"""Run beside the stand-in torch_npu: every NPU branch of device.py and parallel.py, as JSON; and a
golden case through the ``_native_npu`` attention backend.

Arguments: the golden folder of the transformer and the file for its result.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from osp_opt.base.errors import OspOptError
from osp_opt.system.device import Device, discover
from osp_opt.system.parallel import Parallel


def failure(*args: Any, **options: Any) -> str:
    try:
        Device.open(*args, **options)
    except OspOptError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def two_ranks_exchange() -> list[Any]:
    """What a forked rank 1 and this rank 0 gather over the composite process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    os.environ |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    child = os.fork()
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if child else "1"
    device = Device.open("npu", int(os.environ["LOCAL_RANK"]))
    parallel = Parallel.open(device, timeout_s=60)
    gathered = parallel.gather_objects(str(device.torch_device))
    parallel.barrier()
    parallel.close()
    if not child:
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return gathered


def masked_attention(golden: Path, out: Path) -> list[list[Any]]:
    """The calls of the fused kernel that got a mask."""
    import torch_npu

    from osp_opt.model.release import load_transformer  # which loads diffusers, and that torch_npu

    before = len(torch_npu.calls)
    case = load_file(golden / "case_a_video.safetensors")
    transformer = load_transformer(golden / "main")
    transformer.set_attention_backend("_native_npu")
    with torch.no_grad():
        inputs = {name[3:]: tensor for name, tensor in case.items() if name.startswith("in.")}
        sample = transformer(**inputs).sample
    save_file({"sample": sample.contiguous()}, out)
    return [call for call in torch_npu.calls[before:] if call[0] == "masked attention"]


def main(golden: Path, out: Path) -> None:
    auto = Device.open("auto", 1)
    import torch_npu  # the stand-in, which device.py has imported

    auto.synchronize()
    auto.empty_cache()
    auto.reset_peak_memory()
    auto.manual_seed(7)
    exact = Device.open("npu", 0, dtype="float32")
    npu = discover()[0]
    memory = auto.memory()
    print(
        json.dumps(
            {
                "auto": [auto.name, str(auto.torch_device), auto.backend, str(auto.dtype)],
                "attention": [auto.attention, exact.attention],
                "precision": [
                    str(auto.precision.conv3d),
                    str(auto.precision.group_norm),
                    str(auto.precision.softmax),
                ],
                "precision_float32": str(exact.precision.conv3d),
                "memory_gib": [
                    figure // 2**30 for figure in (memory.allocated, memory.peak, memory.total)
                ],
                "calls": list(torch_npu.calls),
                "seed": torch.initial_seed(),
                "discovered": [npu.count, npu.models, npu.software, npu.problem],
                "third_rank": failure("npu", 2),
                "float32_attention": failure("npu", dtype="float32", attention="_native_npu"),
                "cuda_attention": failure("npu", attention="flash"),
                "asked_attention": Device.open("npu", attention="native").attention,
                "cpu": Device.open("cpu").name,
                "gathered": two_ranks_exchange(),
                "hccl_used": ["hccl"] in torch_npu.calls,
                "masked": masked_attention(golden, out),
            }
        )
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
