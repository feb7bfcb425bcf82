"""Run where no torch_npu is installed: what opening devices says where one is, of any condition.

Arguments: pairs of a folder with a torch_npu and the value of ASCEND_RT_VISIBLE_DEVICES, "-" where
it is not set. Each is tried in a process of its own, forked from this one, which has loaded torch.
"""

from __future__ import annotations

import json
import os
import sys

from osp_opt.base.errors import DeviceError
from osp_opt.system.device import Device


def opened(folder: str, visible: str) -> list[str]:
    """What `auto` and `cpu` open, then why `npu` does not."""
    reading, writing = os.pipe()
    if not (child := os.fork()):
        sys.path.insert(0, folder)
        if visible != "-":
            os.environ["ASCEND_RT_VISIBLE_DEVICES"] = visible
        said = [Device.open("auto").name, Device.open("cpu").name]
        try:
            Device.open("npu")
        except DeviceError as error:
            said.append(str(error))
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with os.fdopen(reading) as told:
        return json.load(told)


if __name__ == "__main__":
    print(json.dumps([opened(*pair) for pair in zip(sys.argv[1::2], sys.argv[2::2], strict=True)]))
