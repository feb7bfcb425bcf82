"""The recorded statistics and `calibration.safetensors`.

Suffixes: P videos, K steps (noise levels, the noisiest first), G lags, B = blocks + 1 boundaries.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from osp_opt.base.artifacts import atomic_write_bytes, parse_json, read_bytes
from osp_opt.base.errors import CalibrationError, FileError
from osp_opt.base.samplers import SamplerKind
from osp_opt.calibration.signals import CacheSignals
from osp_opt.pipelines.calibrated import HEADER, read_header
from osp_opt.pipelines.maker import Request
from osp_opt.sampling.noise_scale import NoiseScale
from osp_opt.sampling.schedule import TimestepSchedule, own_scale

__all__ = ["FORMAT", "Calibration", "VideoStatistics", "is_of", "load_whole", "step_changes"]

FORMAT = "osp-opt/calibration/1"
_TENSORS = ("timesteps", "sigmas", "step_gram_PKK", "block_gram_PKGBB", "guided_gram_PKGBB")
_SIGNALS = ("residual_ratio_PRKK", "input_change_PKK", "output_change_PKK")  # since 0.1.0
_MAX_BYTES = 2 << 30
_ROUNDING = 1e-4  # of a table's trace; they are kept in float32


def step_changes(step_gram: np.ndarray) -> np.ndarray:
    """Mean squared difference of the denoised predictions of two levels, [..., K, K].

    C[k, j] = G[k, k] + G[j, j] - 2 G[k, j], clipped at 0 against rounding.
    """
    own = np.diagonal(step_gram, axis1=-2, axis2=-1)
    changes: np.ndarray = own[..., :, None] + own[..., None, :] - 2.0 * step_gram
    return changes.clip(0.0)


@dataclass(frozen=True)
class VideoStatistics:
    """What one sampled video tells: the fields of `Calibration` without the first axis."""

    step_gram: np.ndarray
    block_gram: np.ndarray
    guided_block_gram: np.ndarray
    signals: CacheSignals | None = None


@dataclass(frozen=True)
class Calibration:
    """Statistics of P sampled videos.

    timesteps, sigmas: [K] of the recorded levels, as sampled (descending; no final zero).
    step_gram: [P, K, K] mean over latent elements of D_k * D_j, where D_k is the denoised
        prediction after guidance at level k (variance-exploding scaling), float64.
    block_gram: [P, K, G, B, B] mean over tokens, features and both guidance branches of
        g_a * g_b, where g_b = h_{k,b} - h_{k-lag,b} is the change of the hidden state at block
        boundary b (0: input of the first block). NaN where there is no step k - lag.
    guided_block_gram: the same of the branches combined as guidance combines the outputs,
        g = (1 - w) g_uncond + w g_cond: the part of the change that guidance amplifies.
    lags: the G lags in steps. prompts, seeds: of the P videos.
    metadata: model fingerprint, video shape, sampler, guidance ... (JSON values).
    seconds: that denoising one video took while it was recorded, of all processes that made it
        together; None where several are joined.
    signals: what other people's caches decide by; None in files that were recorded without.
    """

    timesteps: np.ndarray
    sigmas: np.ndarray
    step_gram: np.ndarray
    block_gram: np.ndarray
    guided_block_gram: np.ndarray
    lags: tuple[int, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    metadata: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    signals: CacheSignals | None = None

    def __post_init__(self) -> None:
        p, k, g = len(self.prompts), len(self.timesteps), len(self.lags)
        b = self.block_gram.shape[-1] if self.block_gram.ndim else 0
        expected = {
            "seeds": ((len(self.seeds),), (p,)),
            "sigmas": (self.sigmas.shape, (k,)),
            "step_gram": (self.step_gram.shape, (p, k, k)),
            "block_gram": (self.block_gram.shape, (p, k, g, b, b)),
            "guided_block_gram": (self.guided_block_gram.shape, (p, k, g, b, b)),
        }
        for name, (found, wanted) in expected.items():
            if found != wanted:
                raise CalibrationError(
                    f"calibration: {name} is {list(found)}, expected {list(wanted)} for {p} "
                    f"videos and {k} levels"
                )
        if p < 1 or k < 2:
            raise CalibrationError(f"calibration: {p} videos and {k} levels; needs 1 and 2")
        if np.any(np.diff(self.timesteps) >= 0) or np.any(np.diff(self.sigmas) >= 0):
            raise CalibrationError("calibration: timesteps and sigmas must descend strictly")
        for name in ("timesteps", "sigmas", "step_gram"):
            if not np.all(np.isfinite(getattr(self, name))):
                raise CalibrationError(f"calibration: {name} holds NaN or infinities")
        if np.any(self.sigmas <= 0) or any(lag < 1 for lag in self.lags):
            raise CalibrationError("calibration: sigmas and lags must be positive")
        if self.signals is not None:
            self.signals.check(p, k)

    @property
    def scale(self) -> NoiseScale:
        """Which noise levels timesteps are: Open-Sora-Plan's, unless the metadata say otherwise.

        Raises CalibrationError for metadata that hold no scale.
        """
        try:
            told = self.metadata.get("levels")
            return own_scale() if told is None else NoiseScale.from_json(told)
        except ValueError as error:
            raise CalibrationError(f"calibration: {error}") from error

    @property
    def kind(self) -> SamplerKind | None:
        """What the sampler is, where it is not one of ours by name.

        Raises CalibrationError for metadata that do not say it right.
        """
        told = self.metadata.get("kind")
        try:
            return None if told is None else SamplerKind(**told)
        except TypeError as error:
            raise CalibrationError("calibration: does not say what its sampler is") from error

    @property
    def data_scale(self) -> float:
        """Root mean square of the finished latents, in the unit of the recorded predictions."""
        return float(np.sqrt(np.mean(self.step_gram[:, -1, -1])))

    @property
    def boundary(self) -> float | None:
        """The timestep from which on, downwards, a second transformer made the steps."""
        told = self.metadata.get("boundary")
        return float(told) if isinstance(told, (int, float)) else None

    @classmethod
    def of_video(
        cls,
        statistics: VideoStatistics,
        *,
        schedule: TimestepSchedule,
        lags: Sequence[int],
        request: Request,
        metadata: dict[str, Any],
        seconds: float | None = None,
    ) -> Calibration:
        """A calibration of one video; `merge` joins them."""
        return cls(
            np.array(schedule.timesteps, dtype=np.float64),
            schedule.sigmas[:-1],
            statistics.step_gram[None],
            statistics.block_gram[None],
            statistics.guided_block_gram[None],
            tuple(lags),
            (request.prompt,),
            (request.seed,),
            dict(metadata),
            seconds,
            statistics.signals,
        )

    @classmethod
    def merge(cls, parts: Sequence[Calibration]) -> Calibration:
        """The videos of all `parts`, in order. Raises CalibrationError when settings differ."""
        if not parts:
            raise CalibrationError("calibration: no videos to join")
        first = parts[0]
        signals = [part.signals for part in parts if part.signals is not None]
        for part in parts[1:]:
            same = (
                np.array_equal(part.timesteps, first.timesteps)
                and np.array_equal(part.sigmas, first.sigmas)
                and part.lags == first.lags
                and part.metadata == first.metadata
                and part.block_gram.shape[1:] == first.block_gram.shape[1:]
            )
            if not same:
                raise CalibrationError(
                    f"calibration: the video of {part.prompts[0]!r} was made with other settings "
                    f"than that of {first.prompts[0]!r}"
                )
        return cls(
            first.timesteps,
            first.sigmas,
            np.concatenate([part.step_gram for part in parts]),
            np.concatenate([part.block_gram for part in parts]),
            np.concatenate([part.guided_block_gram for part in parts]),
            first.lags,
            sum((part.prompts for part in parts), ()),
            sum((part.seeds for part in parts), ()),
            first.metadata,
            signals=CacheSignals.join(signals) if len(signals) == len(parts) else None,
        )

    def save(self, path: Path) -> None:
        """Write the file atomically; a digest over all bytes lets `load` notice any damage."""
        arrays = (
            self.timesteps.astype(np.float64),
            self.sigmas.astype(np.float64),
            self.step_gram.astype(np.float64),
            self.block_gram.astype(np.float32),
            self.guided_block_gram.astype(np.float32),
        )
        about = {
            "format": FORMAT,
            "lags": list(self.lags),
            "prompts": list(self.prompts),
            "seeds": list(self.seeds),
            "metadata": self.metadata,
            "seconds": self.seconds,
        }
        tensors = dict(zip(_TENSORS, map(np.ascontiguousarray, arrays), strict=True))
        if self.signals is not None:
            kept = (getattr(self.signals, name.rpartition("_")[0]) for name in _SIGNALS)
            tensors |= {
                name: np.ascontiguousarray(array.astype(np.float32))
                for name, array in zip(_SIGNALS, kept, strict=True)
            }
        text = json.dumps(about, sort_keys=True)
        # One key only: safetensors writes several in an order that changes from run to run.
        header = json.dumps([text, _digest(tensors, text)])
        atomic_write_bytes(path, save_tensors(tensors, metadata={HEADER: header}))

    @classmethod
    def load(cls, path: Path) -> Calibration:
        """Read a file of `save`.

        Raises FileError when it cannot be read, CalibrationError when it is not whole and ours.
        """
        data = read_bytes(path, "calibration file", _MAX_BYTES)
        try:
            tensors = load_tensors(data)
            text, digest = read_header(io.BytesIO(data))
            about = _About.model_validate(parse_json(text))
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CalibrationError(f"{path}: not a calibration file of osp-opt") from error
        has_signals = set(tensors) == {*_TENSORS, *_SIGNALS}
        if not (has_signals or set(tensors) == set(_TENSORS)):
            raise CalibrationError(f"{path}: not a calibration file of osp-opt")
        if about.format != FORMAT:
            raise CalibrationError(f"{path}: format {about.format!r:.40}, expected {FORMAT!r}")
        if _digest(tensors, text) != digest:
            raise CalibrationError(
                f"{path}: damaged (digest mismatch); run osp-opt calibrate again"
            )
        timesteps, sigmas, step_gram, block_gram, guided = (tensors[name] for name in _TENSORS)
        try:
            found = cls(
                timesteps=timesteps,
                sigmas=sigmas,
                step_gram=step_gram,
                block_gram=block_gram,
                guided_block_gram=guided,
                lags=tuple(about.lags),
                prompts=tuple(about.prompts),
                seeds=tuple(about.seeds),
                metadata=about.metadata,
                seconds=about.seconds,
                signals=CacheSignals(*(tensors[n] for n in _SIGNALS)) if has_signals else None,
            )
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"{path}: not a calibration file of osp-opt") from error
        if not found._is_possible():
            raise CalibrationError(
                f"{path}: its tables are no products of predictions; run osp-opt calibrate again"
            )
        return found

    def _is_possible(self) -> bool:
        """Whether the tables can be mean products of vectors: symmetric, no negative eigenvalue.

        The searches divide by them and take roots.
        """
        own = np.diagonal(self.step_gram, axis1=-2, axis2=-1)
        blocks = [
            gram[:, lag:, place]
            for gram in (self.block_gram, self.guided_block_gram)
            for place, lag in enumerate(self.lags)
        ]
        return bool(np.all(own > 0)) and all(map(_is_gram, [self.step_gram, *blocks]))


def load_whole(path: Path) -> Calibration | None:
    """The calibration in a file; None where there is none, or a damaged one."""
    try:
        return Calibration.load(path) if path.is_file() else None
    except (CalibrationError, FileError):
        return None


def is_of(found: Calibration, request: Request, metadata: Mapping[str, Any]) -> bool:
    """Whether it holds this one video, made in this very way."""
    about = (found.prompts, found.seeds, found.metadata)
    return about == ((request.prompt,), (request.seed,), metadata)


class _About(BaseModel):
    """What the header says of the tensors."""

    model_config = ConfigDict(strict=True)

    format: str
    lags: list[int]
    prompts: list[str]
    seeds: list[int]
    metadata: dict[str, Any]
    seconds: float | None = None


def _is_gram(tables: np.ndarray) -> bool:
    """Whether all tables [..., n, n] are finite, symmetric and positive, but for rounding."""
    if not np.all(np.isfinite(tables)):
        return False
    tables = tables.astype(np.float64)
    slack = _ROUNDING * np.trace(tables, axis1=-2, axis2=-1)
    apart = np.abs(tables - tables.swapaxes(-2, -1)).max((-2, -1), initial=0.0)
    least = np.linalg.eigvalsh(tables).min(-1, initial=0.0)
    return bool(np.all(apart <= slack) and np.all(least >= -slack))


def _digest(tensors: dict[str, np.ndarray], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in filter(tensors.__contains__, (*_TENSORS, *_SIGNALS)):
        array = tensors[name]
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
