"""The size of a video in frames and pixels, and what the model can make of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from osp_opt.base.errors import ShapeError

VAE_STRIDE = (4, 8, 8)  # frames, rows, columns of video per latent (CausalVAEModel 4x8x8)
PIXEL_MULTIPLE = 16  # VAE stride 8 times the transformer's patch of 2
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class VideoShape:
    """Frames and pixels of one video. Raises ShapeError for sizes the VAE and patches cannot hold.

    The causal VAE keeps the first frame and packs each further four into one latent frame, hence
    1, 5, 9, ... 29 ... 93 frames; height and width are multiples of 16 pixels.
    """

    num_frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.num_frames < 1 or (self.num_frames - 1) % VAE_STRIDE[0]:
            below = max(1, self.num_frames - (self.num_frames - 1) % VAE_STRIDE[0])
            near = "1" if self.num_frames < 1 else f"{below} or {below + VAE_STRIDE[0]}"
            raise ShapeError(
                f"num_frames is {self.num_frames}; it must be 4k + 1 (1 for an image), try {near}"
            )
        for name, size in (("height", self.height), ("width", self.width)):
            if size < PIXEL_MULTIPLE or size % PIXEL_MULTIPLE:
                below = max(PIXEL_MULTIPLE, size - size % PIXEL_MULTIPLE)
                raise ShapeError(
                    f"{name} is {size}; it must be a multiple of 16, "
                    f"try {below} or {below + PIXEL_MULTIPLE}"
                )

    def latent(self) -> tuple[int, int, int]:
        """Latent frames, rows and columns (t, h, w)."""
        st, sh, sw = VAE_STRIDE
        return (self.num_frames - 1) // st + 1, self.height // sh, self.width // sw

    def latent_tensor(self, channels: int = LATENT_CHANNELS) -> tuple[int, int, int, int]:
        """Shape (c, t, h, w) of one video's latents."""
        return (channels, *self.latent())

    def check_trained(
        self, transformer_config: Mapping[str, Any], allow_untrained: bool = False
    ) -> None:
        """Raise ShapeError unless the transformer was trained for this shape.

        Reads `sample_size_t` (latent frames) and `sample_size` (latent rows and columns) from the
        transformer's config. A checkpoint makes noise, silently, at another frame count. Nothing is
        refused when `allow_untrained`, and a key the config lacks is not checked.
        """
        if allow_untrained:
            return
        t, h, w = self.latent()
        trained_t = _latent_frames(transformer_config)
        trained_h, trained_w = latent_size(transformer_config) or (None, None)
        if trained_t in (None, t) and trained_h in (None, h) and trained_w in (None, w):
            return
        raise ShapeError(
            f"{self} was asked for, but this checkpoint was trained for "
            f"{_describe(trained_t, trained_h, trained_w)}; "
            "use that shape, or --allow-untrained-shape to try anyway"
        )

    def __str__(self) -> str:
        return f"{self.num_frames}x{self.height}x{self.width} (frames x height x width)"


def latent_size(transformer_config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Latent rows and columns that a transformer was made for: its `sample_size`, a number or two.

    None where the config does not say. Raises ShapeError for anything else.
    """
    size = transformer_config.get("sample_size")
    if size is None:
        return None
    found = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(found) != 2 or not all(map(_is_count, found)):
        raise ShapeError(f"this checkpoint's config has sample_size {size!r}, not a number or two")
    return found


def trained_shape(transformer_config: Mapping[str, Any]) -> VideoShape:
    """The shape that a transformer was trained for, as its config says. Raises ShapeError."""
    size, frames = latent_size(transformer_config), _latent_frames(transformer_config)
    if size is None or frames is None:
        raise ShapeError("this checkpoint's config lacks sample_size or sample_size_t")
    t, h, w = VAE_STRIDE
    return VideoShape((frames - 1) * t + 1, size[0] * h, size[1] * w)


def _latent_frames(transformer_config: Mapping[str, Any]) -> int | None:
    frames = transformer_config.get("sample_size_t")
    if frames is not None and not _is_count(frames):
        raise ShapeError(f"this checkpoint's config has sample_size_t {frames!r}, not a number")
    return frames


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _describe(t: int | None, h: int | None, w: int | None) -> str:
    frames = "any" if t is None else str((t - 1) * VAE_STRIDE[0] + 1)
    height = "any" if h is None else str(h * VAE_STRIDE[1])
    width = "any" if w is None else str(w * VAE_STRIDE[2])
    return f"{frames}x{height}x{width}"
