"""The options of the commands that look at finished videos and runs."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from pydantic import field_validator

from osp_opt.options.base import Fraction, Options, Texts, option
from osp_opt.options.groups import file_at

VBENCH_DIMENSIONS = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "aesthetic_quality",
    "imaging_quality",
)
"""VBench's dimensions that need nothing but the videos."""


class EvaluateOptions(Options):
    """Compare videos with their reference, pair by pair: what was lost, and how surely."""

    command: ClassVar[str] = "evaluate"
    common: ClassVar[tuple[str, ...]] = (
        "reference",
        "candidate",
        "max_loss",
        "vbench_python",
        "out",
        "workdir",
    )
    example: ClassVar[str] = "--reference baseline --candidate faster --max-loss 1%"

    reference: Path | None = option(
        None,
        "Folder of the videos to be compared with: of sample, calibrate, or any.",
        panel="Job",
        metavar="DIR",
    )
    candidate: Path | None = option(
        None,
        "Folder of the videos to be judged; default WORKDIR/samples.",
        panel="Job",
        metavar="DIR",
    )
    max_loss: Fraction | None = option(
        None,
        "Largest acceptable loss of quality, such as 1%; exit code 3 when more is lost, 4 when "
        "neither is shown.",
        panel="Verification",
        metavar="PERCENT",
        gt=0,
        lt=1,
    )
    lpips: bool = option(
        True,
        "LPIPS too, where torchvision and its AlexNet weights are on this machine (never fetched).",
        panel="Verification",
    )
    cvvdp_python: Path | None = option(
        None,
        "Python of an environment in which cvvdp (ColorVideoVDP) is installed; its JOD are added.",
        panel="Verification",
        metavar="PATH",
    )
    vbench_python: Path | None = option(
        None,
        "Python of an environment in which VBench is installed; its scores are added.",
        panel="Verification",
        metavar="PATH",
    )
    vbench_dimensions: Texts = option(
        VBENCH_DIMENSIONS,
        "VBench dimensions to score, of those that take videos of one's own.",
        panel="Verification",
        metavar="NAME",
        min_length=1,
    )
    out: Path | None = option(
        None,
        "Folder or file for the figures; default WORKDIR/evaluate/evaluation.json.",
        panel="Job",
        short="o",
        metavar="PATH",
        identity=False,
    )

    @field_validator("vbench_dimensions")
    @classmethod
    def _plain_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not name.replace("_", "").isalnum() or name.startswith("_"):
                raise ValueError(f"{name!r} is no name of a dimension")
        return value

    @property
    def json_path(self) -> Path:
        """Where the figures are written."""
        return file_at(self.out or self.run_dir, "evaluation.json", ".json")


class ReportOptions(Options):
    """Make one HTML file of finished runs: videos side by side, figures, provenance."""

    command: ClassVar[str] = "report"

    runs: Texts = option(
        (),
        "Run folders, or working folders that hold some; default WORKDIR.",
        panel="Job",
        metavar="RUN",
        positional=True,
    )
    reference: Path | None = option(
        None,
        "Folder of the baseline's videos; default: that of the evaluation, else the uncached "
        "samples with the most steps.",
        panel="Job",
        metavar="DIR",
    )
    max_videos: int = option(
        8, "Videos of each run that are shown.", panel="Job", unit="videos", ge=1, le=1000
    )
    out: Path | None = option(
        None,
        "The HTML file; default report.html in the first RUN.",
        panel="Job",
        short="o",
        metavar="FILE",
    )

    @property
    def places(self) -> list[Path]:
        """The folders that are reported."""
        return [Path(place) for place in self.runs] or [self.workdir]

    @property
    def report_path(self) -> Path:
        """Where the report is written."""
        place = self.out or self.places[0]
        return file_at(place, "report.html", ".html", ".htm")
