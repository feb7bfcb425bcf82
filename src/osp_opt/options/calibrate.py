"""The options of calibrate, and where a calibration is kept."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import model_validator

from osp_opt.base.artifacts import read_json
from osp_opt.base.errors import FileError
from osp_opt.base.samplers import MAX_STEPS
from osp_opt.options.base import option
from osp_opt.options.groups import (
    STEPS_ALIASES,
    LaunchOptions,
    MakingOptions,
    check_makes,
)

CALIBRATION_FILE = "calibration.safetensors"
"""The statistics of a calibration, inside its folder."""
CALIBRATED_PROMPTS = 8
"""Used to calibrate when nobody says how many."""
CALIBRATION_NOTE = "calibration.json"
"""In the working folder: where the last calibration is."""


class CalibrateOptions(MakingOptions, LaunchOptions):
    """Sample videos with the original model and record what both searches need."""

    command: ClassVar[str] = "calibrate"
    folder: ClassVar[str | None] = "calibration"
    common: ClassVar[tuple[str, ...]] = (
        *("num_prompts", "prompt_file", "text_prompt", "steps", "guidance_scale"),
        *("model_path", "pipeline", "seed", "out", "workdir", "nproc_per_node"),
    )
    example: ClassVar[str] = "--model-path NAME/REPO/29x480p --prompt-file prompts.txt"

    steps: int = option(
        100,
        "Steps of the original model, and levels of the table; with --pipeline 50.",
        panel="Job",
        aliases=STEPS_ALIASES,
        unit="steps",
        ge=2,
        le=MAX_STEPS,
    )
    num_prompts: int | None = option(
        None,
        "Use only the first prompts; default: all that are given, 8 of the bundled ones.",
        panel="Job",
        unit="prompts",
        ge=1,
    )
    yardstick: bool | None = option(
        None,
        "Sample two videos in four times as many steps too: the scale of a loss; default: with the "
        "bundled model.",
        panel="Job",
    )
    out: Path | None = option(
        None,
        "Folder for videos and statistics; default WORKDIR/calibration.",
        panel="Job",
        short="o",
        aliases=("save_img_path", "save_dir"),
        metavar="DIR",
        identity=False,
    )

    @model_validator(mode="after")
    def _possible_steps(self) -> CalibrateOptions:
        check_makes(self.sampler, self.steps)
        return self

    @property
    def measures_yardstick(self) -> bool:
        """Whether to see how far the original's own steps are from convergence."""
        return self.is_bundled if self.yardstick is None else self.yardstick

    @property
    def calibration_note(self) -> Path:
        """Where it is noted for the searches which folder holds the calibration."""
        return self.workdir / CALIBRATION_NOTE


def calibration_file(place: Path) -> Path:
    """The statistics at `place`: the file itself, or the one in that folder."""
    return place if place.is_file() else place / CALIBRATION_FILE


def calibration_of(workdir: Path) -> Path | None:
    """The folder that `calibrate` noted in a working folder. Raises FileError for a bad note."""
    note = workdir / CALIBRATION_NOTE
    if not note.is_file():
        return None
    content = read_json(note, "note on the calibration")
    folder = content.get("folder") if isinstance(content, dict) else None
    if not isinstance(folder, str):
        raise FileError(f"{note}: names no folder; run osp-opt calibrate again")
    return Path(folder)
