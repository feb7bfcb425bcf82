"""What a machine offers and what model folders are, as facts and problems for ``osp-opt doctor``.

Nothing is downloaded and no weights are copied: safetensors are mapped, and only their names,
types and shapes are compared with the configuration.
"""

from __future__ import annotations

import platform
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from osp_opt.base.artifacts import read_json
from osp_opt.base.errors import CheckpointError, FfmpegError, FileError, OspOptError, ShapeError
from osp_opt.base.ffmpeg import check_ffmpeg
from osp_opt.base.shape import VideoShape, trained_shape
from osp_opt.model.checkpoint import model_fingerprint, open_checkpoint
from osp_opt.model.text.encoder import load_tokenizer
from osp_opt.model.transformer import OpenSoraT2V
from osp_opt.model.vae.autoencoder import CausalVAEModel
from osp_opt.options import ModelOptions
from osp_opt.pipelines.files import call_arguments, check_pipeline
from osp_opt.system.device import Device, discover
from osp_opt.system.host import usable_cores
from osp_opt.tiny.prompts import BUNDLED

PACKAGES = ("torch", "torch_npu", "diffusers", "transformers", "imageio-ffmpeg")
GIB = 2**30
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+){1,2}")
FINGERPRINT_DIGITS = 16  # shown; artifacts record all 64


@dataclass(frozen=True)
class Section:
    """One table: what was looked at, (name, value) rows, and what is wrong with it."""

    title: str
    rows: tuple[tuple[str, str], ...]
    problems: tuple[str, ...] = ()


def machine() -> Section:
    """Software, processor and memory."""
    rows = [("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}")]
    rows += [(package, _version(package)) for package in PACKAGES]
    problems: tuple[str, ...] = ()
    try:
        rows.append(("ffmpeg", f"{check_ffmpeg()}, writes and reads our videos"))
    except FfmpegError as error:
        rows.append(("ffmpeg", "cannot be used"))
        problems = (str(error),)
    memory = Device.open("cpu").memory()
    rows.append(("processor", f"{usable_cores()} cores, {gib(memory.total)} memory"))
    return Section("Machine", tuple(rows), problems)


def devices(name: str, dtype: str, attention: str) -> Section:
    """Every kind of device, and what a job with these options would use."""
    rows: list[tuple[str, str]] = []
    for each in discover():
        if each.problem is not None:
            rows.append((each.kind, f"no: {each.problem}"))
        elif each.kind == "cpu":
            rows.append((each.kind, "yes"))
        else:
            counted = Counter(zip(each.models, map(gib, each.memory_bytes), strict=True))
            listed = ", ".join(f"{n} x {model} {size}" for (model, size), n in counted.items())
            rows.append((each.kind, f"yes: {listed} ({each.software})"))
    try:
        device = Device.open(name, dtype=dtype, attention=attention)
    except OspOptError as error:
        return Section("Devices", tuple(rows), (str(error),))
    used = f"{device.name} in {device.dtype_name}, attention {device.attention}"
    rows.append(("a job would use", used))
    return Section("Devices", tuple(rows))


def models(path: str, asked: VideoShape | None, allow_untrained: bool) -> list[Section]:
    """What ``path`` holds: a transformer, a VAE, a text encoder, or a folder of such folders."""
    root = Path(path).expanduser()
    if not root.is_dir():
        if HUB_ID.fullmatch(path) and not path.startswith("."):
            state = "a hub id, not a folder here; downloaded when a job needs it"
            return [Section(path, (("state", state),))]
        return [Section(path, (), (f"{path}: no such folder, and not a hub id (owner/name)",))]
    if (root / "config.json").is_file():
        return [_model(root, asked, allow_untrained)]
    inside = sorted(folder.parent for folder in root.glob("*/config.json"))
    if not inside:
        return [Section(path, (), (f"{path}: holds no config.json; give a model's folder",))]
    # A repository holds checkpoints for several shapes: not all can be of the one asked for.
    return [_model(folder, None, allow_untrained) for folder in inside]


def pipeline(options: ModelOptions) -> Section:
    """A pipeline of another model: whether it can be driven from outside, and by what."""
    from osp_opt.pipelines.diffusers_pipeline import (
        open_pipeline,  # seconds of imports, for this alone
    )

    path = str(options.pipeline)
    title = f"Pipeline {path}"
    try:
        check_pipeline(options)
        arguments = call_arguments(options)
        found = open_pipeline(path, arguments=arguments, cache_dir=options.cache_dir)
    except OspOptError as error:
        return Section(title, (), (str(error),))
    kind, steering = found.kind, found.steering
    levels = "1000 s of flow matching" if steering.is_flow else "trained timesteps"
    scheduler = f"{steering.name}: {levels}, {steering.prediction}, order {kind.order}"
    steps = "can be searched" if kind.order == 1 else "can be searched, ranked as Euler steps are"
    if kind.ancestral:
        steps = "cannot be searched: it draws fresh noise, so runs of other lengths differ"
    blocks = f"{found.num_blocks} registered blocks in each of {', '.join(found.transformers)}"
    rows = (
        ("pipeline", found.name),
        ("scheduler", scheduler),
        ("steps", steps),
        ("blocks", blocks),
        ("driven by", "every command with --pipeline; osp_opt.open_pipeline in Python"),
    )
    return Section(title, rows)


def bundled() -> list[Section]:
    """The model inside the package."""
    if not BUNDLED.is_dir() or not any(BUNDLED.glob("*/config.json")):
        missing = "the bundled model is missing from this installation; install osp-opt again"
        return [Section("Bundled model", (), (missing,))]
    return models(str(BUNDLED), None, allow_untrained=False)


def gib(size: int | None) -> str:
    """Bytes as GiB, or MiB below one tenth of that."""
    if size is None:
        return "unknown"
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


def _model(folder: Path, asked: VideoShape | None, allow_untrained: bool) -> Section:
    """One model folder; warnings of the loader (permissions) are shown as rows."""
    title = str(folder)
    try:
        config = read_json(folder / "config.json", "model config")
    except FileError as error:
        return Section(title, (), (str(error),))
    found = config.get("_class_name") or config.get("model_type") if isinstance(config, dict) else 0
    if found not in _INSPECTORS:
        known = ", ".join(map(str, _INSPECTORS))
        return Section(title, (), (f"{folder}: is a {found or 'unnamed model'}; known: {known}",))
    rows: list[tuple[str, str]] = [("class", str(found))]
    problems: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            rows += _INSPECTORS[found](folder, asked, allow_untrained, problems)
            rows.append(("fingerprint", model_fingerprint(folder)[:FINGERPRINT_DIGITS]))
        except CheckpointError as error:
            problems.append(str(error))
    rows += [("warning", str(each.message)) for each in caught if each.category is UserWarning]
    rows.append(("loadable", "no" if problems else "yes"))
    return Section(title, tuple(rows), tuple(problems))


def _transformer(
    folder: Path, asked: VideoShape | None, allow_untrained: bool, problems: list[str]
) -> list[tuple[str, str]]:
    model, state = open_checkpoint(OpenSoraT2V, folder)
    config = model.config
    heads, width = config.num_attention_heads, config.attention_head_dim
    shape = trained_shape(config)
    trained = f"{shape.num_frames} frames, {shape.height} x {shape.width} pixels (h x w)"
    if asked is not None:
        try:
            asked.check_trained(config, allow_untrained)
        except ShapeError as error:
            problems.append(str(error))
    return [
        ("structure", f"{config.num_layers} layers, {heads} heads x {width}"),
        ("trained for", trained),
        *_weights(state.values()),
    ]


def _vae(
    folder: Path, asked: VideoShape | None, allow_untrained: bool, problems: list[str]
) -> list[tuple[str, str]]:
    model, state = open_checkpoint(CausalVAEModel, folder)
    widths = " ".join(str(model.config.hidden_size * m) for m in model.config.hidden_size_mult)
    return [("structure", f"channels {widths}"), *_weights(state.values())]


def _text_encoder(
    folder: Path, asked: VideoShape | None, allow_untrained: bool, problems: list[str]
) -> list[tuple[str, str]]:
    config = read_json(folder / "config.json", "text encoder config")
    tokenizer = load_tokenizer(folder)
    files = [file for suffix in ("safetensors", "bin") for file in folder.glob(f"*.{suffix}")]
    if not files:
        problems.append(f"{folder}: no weights found; expected *.safetensors or *.bin")
    structure = f"{config.get('num_layers')} layers, width {config.get('d_model')}"
    total = sum(file.stat().st_size for file in files)
    return [
        ("structure", structure),
        ("tokenizer", f"{len(tokenizer)} pieces"),
        ("weights", f"{gib(total)} in {len(files)} files, not read"),
    ]


_Inspector = Callable[[Path, "VideoShape | None", bool, list[str]], list[tuple[str, str]]]
_INSPECTORS: dict[object, _Inspector] = {
    "OpenSoraT2V": _transformer,
    "CausalVAEModel": _vae,
    "mt5": _text_encoder,
}


def _weights(tensors: Iterable[Tensor]) -> list[tuple[str, str]]:
    elements: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        elements[tensor.dtype] += prod(tensor.shape)
    count, size = sum(elements.values()), sum(n * kind.itemsize for kind, n in elements.items())
    stored = ", ".join(str(kind).removeprefix("torch.") for kind in elements)
    return [("parameters", f"{count:,}"), ("stored", f"{gib(size)} in {stored}")]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
