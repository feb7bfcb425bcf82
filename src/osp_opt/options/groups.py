"""Options that several subcommands share. ``None`` means: what the model's own defaults say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from osp_opt.base.samplers import FOLLOW_TIMESTEPS, SAMPLER_KINDS, Sampler
from osp_opt.base.shape import PIXEL_MULTIPLE, VAE_STRIDE
from osp_opt.options.base import STATE_FOLDER, Dtype, Options, Texts, flag_of, option

FRAME_STRIDE = VAE_STRIDE[0]
PROMPT_FILE_KINDS = (".txt", ".json", ".jsonl", ".ndjson", ".csv", ".tsv")


_OF_OPEN_SORA_PLAN = {
    *("model_path", "version", "ae", "ae_path", "text_encoder_name", "model_type"),
    *("sampler", "noise", "tile_overlap_factor", "allow_untrained_shape"),
    *("videos_path", "resize", "also"),
}
"""Options that say something of Open-Sora-Plan's models only."""


class ModelOptions(Options):
    """Which model. Without ``model_path``: the small model inside the package."""

    model_path: str | None = option(
        None,
        "Transformer: a local folder or a hub id such as NAME/REPO/29x480p. "
        "Without it, the bundled model.",
        panel="Model",
        aliases=("model",),
        metavar="PATH",
    )
    pipeline: str | None = option(
        None,
        "Another model, in place of MODEL_PATH: a text-to-video pipeline of diffusers, a local "
        "folder or a hub id.",
        panel="Model",
        metavar="PATH",
    )
    pipeline_args: Path | None = option(
        None,
        "YAML or JSON file of arguments for every call of --pipeline (num_frames: 81, ...).",
        panel="Model",
        metavar="FILE",
    )
    version: str | None = option(
        None,
        "Checkpoint subfolder inside MODEL_PATH (29x480p, 93x720p, ...).",
        panel="Model",
    )
    ae: Literal["CausalVAEModel_D4_4x8x8", "CausalVAEModel_4x8x8"] = option(
        "CausalVAEModel_D4_4x8x8", "Class of the video autoencoder.", panel="Model", metavar="NAME"
    )
    ae_path: str | None = option(
        None, "Video autoencoder: a local folder or hub id.", panel="Model", metavar="PATH"
    )
    text_encoder_name: str | None = option(
        None, "mT5 text encoder: a local folder or hub id.", panel="Model", metavar="PATH"
    )
    cache_dir: Path | None = option(
        None,
        "Folder that holds downloads from the hub.",
        panel="Model",
        metavar="DIR",
        identity=False,
    )
    model_type: Literal["dit"] = option(
        "dit", "Only dit: Open-Sora-Plan v1.2 has no other.", panel="Model"
    )

    @property
    def is_bundled(self) -> bool:
        """Whether it is the package's own model, whose videos the checker can read."""
        return self.model_path is None and self.pipeline is None

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if self.pipeline is None:
            if self.pipeline_args is not None:
                raise ValueError("--pipeline-args: is for a pipeline; name one with --pipeline")
            return self
        for name in self.model_fields_set & _OF_OPEN_SORA_PLAN:
            raise ValueError(
                f"{flag_of(name)}: means nothing to a --pipeline; leave one of the two out"
            )
        return self

    @field_validator("model_type", mode="before")
    @classmethod
    def _only_dit(cls, value: Any) -> Any:
        if value in ("udit", "latte"):
            raise ValueError("this model type is not supported; Open-Sora-Plan v1.2 is a dit")
        return value


class ShapeOptions(Options):
    """The size of the video."""

    num_frames: int | None = option(
        None, "Length: 4k+1; 1 makes an image.", panel="Video", unit="frames", ge=1, le=1021
    )
    height: int | None = option(
        None, "Height.", panel="Video", unit="pixels", ge=16, le=8192, multiple_of=PIXEL_MULTIPLE
    )
    width: int | None = option(
        None, "Width.", panel="Video", unit="pixels", ge=16, le=8192, multiple_of=PIXEL_MULTIPLE
    )
    allow_untrained_shape: bool = option(
        False, "Sample a shape that the checkpoint was not trained for.", panel="Video"
    )

    @model_validator(mode="after")
    def _whole_latent_frames(self) -> Self:
        value = self.num_frames
        of_another = getattr(self, "pipeline", None) is not None  # which says itself what it takes
        if value is not None and (value - 1) % FRAME_STRIDE and not of_another:
            nearest = (value - 1) // FRAME_STRIDE * FRAME_STRIDE + 1
            raise ValueError(
                f"--num-frames {value}: must be 4k+1, for example {nearest} or "
                f"{nearest + FRAME_STRIDE} frames"
            )
        return self


class DeviceOptions(Options):
    """What computes, and how exactly."""

    device: Literal["auto", "npu", "cuda", "cpu"] = option(
        "auto", "What computes; auto takes the first of npu, cuda, cpu.", panel="Device"
    )
    dtype: Dtype = option(
        "auto", "Number format; auto: float32 on the CPU, bfloat16 elsewhere.", panel="Device"
    )
    attention: str = option(
        "auto", "Attention backend of diffusers (native, flash, ...).", panel="Device"
    )
    compile: bool = option(False, "Compile the transformer blocks (torch.compile).", panel="Device")
    save_memory: bool = option(
        False,
        "Smaller autoencoder tiles, guidance branches in turn, text encoder released after use; "
        "of a --pipeline: tiles.",
        panel="Device",
    )
    offload: bool = option(
        False,
        "Keep text encoder and autoencoder in host memory while they are not in use; "
        "of a --pipeline: every part, or block by block where one does not fit the device.",
        panel="Device",
        identity=False,
    )

    @field_validator("device", mode="before")
    @classmethod
    def _no_index(cls, value: Any) -> Any:
        """Every worker takes the device of its local rank, so ``cuda:0`` says no more than cuda."""
        if isinstance(value, str) and value.endswith(":0"):
            return value.removesuffix(":0")
        if value == "gpu":
            raise ValueError("say cuda for a GPU of NVIDIA's, npu for Ascend's")
        if isinstance(value, str) and ":" in value:
            raise ValueError(
                "choose a device by name only; select devices with ASCEND_RT_VISIBLE_DEVICES "
                "or CUDA_VISIBLE_DEVICES"
            )
        return value


class SamplingOptions(ModelOptions, ShapeOptions, DeviceOptions):
    """Everything that decides what a sampled video looks like, but its steps and prompts."""

    pipeline_steps: ClassVar[Any] = None
    """What `steps` is with --pipeline, where nobody says."""

    @model_validator(mode="after")
    def _steps_of_a_pipeline(self) -> Self:
        takes = self.pipeline is not None and self.pipeline_steps is not None
        if takes and "steps" not in self.model_fields_set:
            self.__dict__["steps"] = self.pipeline_steps  # still one that nobody set
        return self

    sampler: Sampler = option(
        "EulerAncestralDiscrete",
        "Sampling method.",
        panel="Sampling",
        aliases=("sample_method",),
        metavar="NAME",
    )
    guidance_scale: float | None = option(
        None, "Classifier-free guidance; 1 is none.", panel="Sampling", ge=0, le=100
    )
    negative_prompt: str | None = option(None, "What to steer away from.", panel="Prompts")
    seed: int = option(
        42,
        "Seed; one seed and prompt make one video on any number of devices.",
        panel="Sampling",
        ge=0,
        le=2**63 - 1,
    )
    noise: Literal["coupled", "independent"] = option(
        "coupled",
        "coupled: runs of any number of steps converge to one video, so 12 steps preview what "
        "100 make; independent: fresh noise per step.",
        panel="Sampling",
    )
    max_sequence_length: int | None = option(
        None, "Prompts are cut at this length.", panel="Prompts", unit="tokens", ge=1, le=4096
    )
    fps: float | None = option(
        None, "Speed of the written mp4.", panel="Video", unit="frames/s", gt=0, le=240
    )
    enable_tiling: bool = option(False, "Decode in tiles, which bounds memory.", panel="Video")
    tile_overlap_factor: float = option(
        0.25, "Overlap of neighbouring tiles, as part of a tile.", panel="Video", ge=0, le=0.96875
    )
    text_prompt: Texts = option(
        (),
        "A prompt, several (also repeated), or one file as for --prompt-file.",
        panel="Prompts",
        aliases=("prompt",),
        metavar="TEXT...",
    )
    prompt_file: Path | None = option(
        None,
        "File of prompts: .txt (one a line, # comments), .json, .jsonl, .csv or .tsv.",
        panel="Prompts",
        metavar="FILE",
    )

    @model_validator(mode="before")
    @classmethod
    def _prompt_file(cls, values: Any) -> Any:
        """A file given as text, such as the reference tool's ``--text_prompt prompts.txt``."""
        if not isinstance(values, dict):
            return values
        texts = values.get("text_prompt") or ()
        if not isinstance(texts, (str, list, tuple)):
            return values  # the field says what is wrong with it
        texts = [texts] if isinstance(texts, str) else list(texts)
        files = [text for text in texts if isinstance(text, str) and _is_prompt_file(text)]
        if files and (len(texts) > 1 or values.get("prompt_file") is not None):
            raise ValueError(
                f"--text-prompt {files[0]}: is a file; give it alone, as --prompt-file"
            )
        if files:
            return {**values, "text_prompt": (), "prompt_file": files[0]}
        if texts and values.get("prompt_file") is not None:
            raise ValueError("--text-prompt and --prompt-file exclude each other; give one")
        return values

    @field_validator("text_prompt")
    @classmethod
    def _no_empty_prompt(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not text.strip() for text in value):
            raise ValueError("a prompt is empty; write what the video shall show")
        return value


def _is_prompt_file(text: str) -> bool:
    """Whether a text names a file of prompts: by its kind, or because it is there."""
    if Path(text).suffix.lower() in PROMPT_FILE_KINDS and "\n" not in text:
        return True
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False  # too long for a file, or with characters that no path has


class MakingOptions(SamplingOptions):
    """What calibrate and sample share: they make videos, into a folder of the user's."""

    pipeline_steps: ClassVar[Any] = 50
    if TYPE_CHECKING:
        out: Path | None  # each declares it, with its own old names

    @property
    def out_dir(self) -> Path:
        """Where the videos are: ``--out`` when given, else the usual place."""
        return self.out or super().run_dir

    @property
    def run_dir(self) -> Path:
        """Its own place inside the folder of results, which belongs to the user."""
        return self.out_dir / STATE_FOLDER / self.command


class LaunchOptions(Options):
    """The processes: torch.distributed.run's own words."""

    overwrite: bool = option(
        False,
        "Start afresh where a run made with other options lies; that run is kept as NAME.old-N.",
        panel="Run",
        identity=False,
    )
    nproc_per_node: int = option(
        1, "Processes on this machine.", panel="Launch", ge=1, le=1024, identity=False
    )
    nnodes: int = option(1, "Machines.", panel="Launch", ge=1, le=4096, identity=False)
    node_rank: int = option(0, "Number of this machine.", panel="Launch", ge=0, identity=False)
    master_addr: str | None = option(
        None, "Address of machine 0.", panel="Launch", metavar="HOST", identity=False
    )
    master_port: int | None = option(
        None,
        "Port on machine 0; without it a free one, on one machine.",
        panel="Launch",
        ge=1,
        le=65535,
        identity=False,
    )
    rdzv_backend: str | None = option(
        None, "Rendezvous backend (c10d, static, ...).", panel="Launch", identity=False
    )
    rdzv_endpoint: str | None = option(
        None, "Rendezvous endpoint.", panel="Launch", metavar="HOST:PORT", identity=False
    )
    rdzv_id: str | None = option(None, "Name of the job.", panel="Launch", identity=False)
    parallel: str = option(
        "auto",
        "How processes share the work: auto, or dp=N,cfg=N,sp=N.",
        panel="Launch",
        identity=False,
    )
    timeout: float = option(
        1800,
        "A process without a sign of life for longer ends the job; so does a machine that is "
        "missing.",
        panel="Launch",
        unit="seconds",
        gt=0,
        le=86400,
        identity=False,
    )

    @model_validator(mode="after")
    def _several_machines(self) -> LaunchOptions:
        if self.node_rank >= self.nnodes:
            raise ValueError(
                f"--node-rank {self.node_rank}: machines are numbered 0 to {self.nnodes - 1}"
            )
        if self.nnodes > 1 and self.rdzv_endpoint is None and self.master_addr is None:
            raise ValueError(
                f"--nnodes {self.nnodes}: needs --master-addr and --master-port, or --rdzv-endpoint"
            )
        return self


class CacheMemoryOptions(Options):
    """Where a block cache keeps what it reuses: for models whose hidden states are large."""

    cache_dtype: Dtype = option(
        "auto", "Number format of the stored changes; auto: as computed.", panel="Device"
    )
    cache_offload: bool = option(False, "Keep the stored changes in host memory.", panel="Device")


STEPS_ALIASES = ("num_sampling_steps", "num_inference_steps")
SCHEDULE = "Searched schedule: JSON list of timesteps / 1000."


def check_makes(sampler: str, steps: int) -> None:
    """Raise ValueError for a number of steps that a sampler cannot make."""
    kind = SAMPLER_KINDS[sampler]
    if not kind.fewest <= steps <= kind.most:
        raise ValueError(
            f"--steps {steps}: {sampler} makes {kind.fewest} to {kind.most} steps; "
            "choose so many, or another --sampler"
        )


def check_follows(sampler: str, what: str = "schedule") -> None:
    """Raise ValueError for a sampler that takes its own steps and no others."""
    if sampler not in FOLLOW_TIMESTEPS:
        takes = ", ".join(FOLLOW_TIMESTEPS)
        raise ValueError(f"--sampler {sampler}: takes no {what}; use one of {takes}")


def file_at(place: Path, name: str, *suffixes: str) -> Path:
    """``place`` itself when it is named like a file, else ``name`` inside it."""
    return place if place.suffix in suffixes and not place.is_dir() else place / name
