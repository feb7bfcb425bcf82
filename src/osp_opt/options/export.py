"""The options of the command that writes what was found for other people's runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from osp_opt.base.samplers import MAX_STEPS
from osp_opt.options.base import Options, option

Runtime = Literal[
    "osp-opt",
    "mindie-sd",
    "mindie-policy",
    "cache-dit",
    "sglang",
    "diffusers",
    "comfyui",
    "magcache",
    "teacache",
]

MAX_BLOCKS = 1000
"""Of a transformer; a bound on what a file can make us compute."""


class ExportOptions(Options):
    """Write a schedule or cache policy for another runtime: diffusers, cache-dit, MindIE-SD, ..."""

    command: ClassVar[str] = "export"
    common: ClassVar[tuple[str, ...]] = (
        *("file", "to", "from_format", "steps", "num_blocks", "calls_per_step", "shift"),
        *("out",),
    )
    example: ClassVar[str] = "dit_cache_config.json --to cache-dit --num-blocks 32"

    file: Path | None = option(
        None,
        "Schedule, cache policy or recipe; for constants, the folder of a calibration.",
        panel="Job",
        metavar="FILE",
        positional=True,
    )
    to: Runtime | None = option(None, "The runtime that is to read it.", panel="Job")
    from_format: Literal["mindie-sd"] | None = option(
        None,
        "Read another runtime's configuration: a CacheConfig of MindIE-SD, JSON or Python.",
        panel="Job",
        aliases=("from",),
    )
    steps: int | None = option(
        None,
        "Sampling steps; default: as the file or its provenance says, or as were calibrated.",
        panel="Job",
        aliases=("num_sampling_steps",),
        ge=2,
        le=MAX_STEPS,
    )
    num_blocks: int | None = option(
        None,
        "Blocks of the transformer (Open-Sora-Plan v1.2: 32); default: as the provenance says.",
        panel="Job",
        ge=1,
        le=MAX_BLOCKS,
    )
    calls_per_step: int | None = option(
        None,
        "2 where the transformer runs once for each guidance branch (for cache-dit); default: as "
        "the provenance says, else 1.",
        panel="Job",
        ge=1,
        le=2,
    )
    shift: float | None = option(
        None,
        "The schedule is of a flow-matching model, whose scheduler shifts by this; 1: not at all. "
        "Default: as the provenance says.",
        panel="Job",
        gt=0,
        le=1000,
    )
    out: Path | None = option(
        None,
        "File to write; its suffix says in which form. Default: shown, to be pasted.",
        panel="Job",
        metavar="FILE",
        identity=False,
    )
