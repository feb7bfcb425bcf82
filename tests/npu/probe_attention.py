"""Run beside the stand-in torch_npu: a golden case through the ``_native_npu`` attention backend.

Arguments: the golden folder and the file for the result.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from osp_opt.model.release import load_transformer


def main(golden: Path, out: Path) -> None:
    import torch_npu

    case = load_file(golden / "case_a_video.safetensors")
    transformer = load_transformer(golden / "main")
    transformer.set_attention_backend("_native_npu")
    with torch.no_grad():
        inputs = {name[3:]: tensor for name, tensor in case.items() if name.startswith("in.")}
        sample = transformer(**inputs).sample
    save_file({"sample": sample.contiguous()}, out)
    print(json.dumps(torch_npu.calls))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
