"""What more devices would make of a step, from counted operations and counted communication."""

from __future__ import annotations

from typing import Any

from benchmarks.speed.operations import StepWork, gather_elements, ulysses_elements
from benchmarks.speed.subjects import ROPE_L_122
from osp_opt.base.shape import VideoShape

BYTES = 2  # of an element in bfloat16
HEADS = ROPE_L_122["num_attention_heads"]
WIDTHS = (1, 8, 64)


def step_seconds(
    shape: VideoShape, devices: int, operations_per_second: float, bytes_per_second: float
) -> dict[str, Any]:
    """Seconds of one guided step of one video on so many devices.

    The two guidance branches are computed side by side first, then tokens are split as far as
    heads and tokens divide; what devices are left make other videos at the same time.

    Args:
        shape: of the video.
        devices: in all.
        operations_per_second: what one device sustains in a step.
        bytes_per_second: what one device can send to others, in one direction.
    """
    work = StepWork.of(released_config(), shape.latent(), text_tokens=300)
    cfg = 2 if devices > 1 else 1
    sequence = max(
        p
        for p in range(1, devices // cfg + 1)
        if devices % (cfg * p) == 0 and HEADS % p == 0 and work.tokens % p == 0
    )
    branch = StepWork.of(released_config(), shape.latent(), text_tokens=300, batch=2 // cfg)
    compute = branch.total / sequence / operations_per_second
    sent = ulysses_elements(branch, sequence) + gather_elements(branch, sequence)
    communicate = BYTES * sent / bytes_per_second
    return {
        "devices": devices,
        "layout": f"dp={devices // (cfg * sequence)},cfg={cfg},sp={sequence}",
        "compute_seconds": compute,
        "communication_seconds": communicate,
        "step_seconds": compute + communicate,
        "videos_at_once": devices // (cfg * sequence),
    }


def run(operations_per_second: float, bytes_per_second: float) -> dict[str, Any]:
    """A row per shape and number of devices; communication is not overlapped with computing."""
    from benchmarks.speed.full_size import SHAPES

    rows = {}
    for name, shape in SHAPES.items():
        found = [step_seconds(shape, n, operations_per_second, bytes_per_second) for n in WIDTHS]
        for row in found:
            one = found[0]["step_seconds"] * row["videos_at_once"]
            row["efficiency"] = one / (row["step_seconds"] * row["devices"])
        rows[name] = found
    return {
        "assumed_operations_per_second": operations_per_second,
        "assumed_bytes_per_second": bytes_per_second,
        "shapes": rows,
    }


def released_config() -> dict[str, Any]:
    """What work is counted by, of the released transformer."""
    return {**ROPE_L_122, "patch_size": 2, "in_channels": 4, "out_channels": None}
