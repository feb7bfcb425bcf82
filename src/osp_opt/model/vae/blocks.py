"""Building blocks of the causal video VAE, each under the name that a checkpoint's config uses.

Tensors are videos ``[b c t h w]``. "Causal" means that a frame sees only itself and earlier
frames: in time every convolution is padded at the front with copies of the first frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from osp_opt.base.errors import CheckpointError

NORM_EPS = 1e-6


class CausalConv3d(nn.Module):
    """3D convolution, causal in time; zero padding in space.

    Args:
        padding: zeros added on each side of height and width (none in time: the first frame is
            repeated ``kernel_t - 1`` times instead).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int, int],
        stride: int | tuple[int, int, int] = 1,
        padding: int = 0,
    ) -> None:
        super().__init__()
        kernel = (kernel_size,) * 3 if isinstance(kernel_size, int) else kernel_size
        self.front = kernel[0] - 1
        self.conv = nn.Conv3d(
            in_channels, out_channels, kernel, stride=stride, padding=(0, padding, padding)
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.front:
            x = torch.cat([x[:, :, :1].expand(-1, -1, self.front, -1, -1), x], dim=2)
        return self.conv(x)


class FrameConv2d(nn.Conv2d):
    """2D convolution applied to every frame alone (``Conv2d`` in a checkpoint's config)."""

    def forward(self, x: Tensor) -> Tensor:
        frames = super().forward(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=NORM_EPS)


class ResnetBlock3D(nn.Module):
    """GroupNorm, SiLU, convolution, twice, around a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, groups)
        self.conv1 = self.make_conv(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, groups)
        self.conv2 = self.make_conv(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = self.make_conv(in_channels, out_channels, 1, padding=0)

    @staticmethod
    def make_conv(in_channels: int, out_channels: int, kernel: int, padding: int) -> nn.Module:
        return CausalConv3d(in_channels, out_channels, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if hasattr(self, "nin_shortcut"):
            x = self.nin_shortcut(x)
        return x + h


class ResnetBlock2D(ResnetBlock3D):
    """The same block on every frame alone: group statistics are per frame too."""

    @staticmethod
    def make_conv(in_channels: int, out_channels: int, kernel: int, padding: int) -> nn.Module:
        return nn.Conv2d(in_channels, out_channels, kernel, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        frames = super().forward(rearrange(x, "b c t h w -> (b t) c h w"))
        return rearrange(frames, "(b t) c h w -> b c t h w", b=x.shape[0])


class _Attention(nn.Module):
    """Single-head attention over the pixels of a frame; subclasses say what a frame is."""

    softmax_dtype: torch.dtype | None = None  # set where a device needs more bits (precision.py)

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = CausalConv3d(channels, channels, 1)
        self.k = CausalConv3d(channels, channels, 1)
        self.v = CausalConv3d(channels, channels, 1)
        self.proj_out = CausalConv3d(channels, channels, 1)

    def split(self, x: Tensor) -> Tensor:
        """``[b c t h w]`` to sequences ``[n, pixels, c]``."""
        raise NotImplementedError

    def merge(self, x: Tensor, like: Tensor) -> Tensor:
        """The inverse of :meth:`split`, to the shape of ``like``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (self.split(project(h)) for project in (self.q, self.k, self.v))
        if self.softmax_dtype is not None:
            q, k, v = (part.to(self.softmax_dtype) for part in (q, k, v))
        h = F.scaled_dot_product_attention(q, k, v).to(x.dtype)  # scale = c ** -0.5
        return x + self.proj_out(self.merge(h, like=x))


class AttnBlock3DFix(_Attention):
    """Attention within each frame."""

    def split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c t h w -> (b t) (h w) c")

    def merge(self, x: Tensor, like: Tensor) -> Tensor:
        b, _, _, h, w = like.shape
        return rearrange(x, "(b t) (h w) c -> b c t h w", b=b, h=h, w=w)


class AttnBlock3D(_Attention):
    """The first releases' block: reads ``[b c t h w]`` memory as if it were ``[b t c h w]``.

    Channels and frames are therefore mixed up. Weights trained with it need it kept.
    """

    def split(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        return rearrange(x.reshape(b * t, c, h * w), "n c p -> n p c")

    def merge(self, x: Tensor, like: Tensor) -> Tensor:
        return rearrange(x, "n p c -> n c p").reshape(like.shape)


class Downsample(nn.Module):
    """Halves height and width of every frame with a 2D convolution, padding right and bottom."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = FrameConv2d(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class SpatialDownsample2x(nn.Module):
    """Halves height and width with a (1, 3, 3) convolution, padding right and bottom."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, (1, 3, 3), stride=(1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Spatial2xTime2x3DDownsample(nn.Module):
    """Halves time, height and width: t = 2k+1 frames become k+1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class TimeDownsample2x(nn.Module):
    """Halves time by averaging three frames, causally: t = 2k+1 frames become k+1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, :1].expand(-1, -1, 2, -1, -1), x], dim=2)
        # Not avg_pool3d: the CPU has none for half precision.
        first, second, third = (x[:, :, k : x.shape[2] - 2 + k : 2] for k in range(3))
        return ((first.float() + second + third) / 3.0).to(x.dtype)


class SpatialUpsample2x(nn.Module):
    """Doubles height and width (nearest), then a (1, 3, 3) convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, (1, 3, 3), padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=(1.0, 2.0, 2.0), mode="nearest"))


def _upsample_time(x: Tensor, space: float) -> Tensor:
    """Frames after the first become two, trilinearly; the first stays one. Space by ``space``."""
    first = x[:, :, :1]
    if space != 1.0:
        first = F.interpolate(first, scale_factor=(1.0, space, space), mode="trilinear")
    if x.shape[2] == 1:
        return first
    rest = F.interpolate(x[:, :, 1:], scale_factor=(2.0, space, space), mode="trilinear")
    return torch.cat([first, rest], dim=2)


class Spatial2xTime2x3DUpsample(nn.Module):
    """Doubles time, height and width: t frames become 2t-1; then a causal convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = CausalConv3d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(_upsample_time(x, space=2.0))


class TimeUpsample2x(nn.Module):
    """Doubles time: t frames become 2t-1. No weights."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return _upsample_time(x, space=1.0)


RESNETS = {"ResnetBlock2D": ResnetBlock2D, "ResnetBlock3D": ResnetBlock3D}
ATTENTIONS = {"AttnBlock3D": AttnBlock3D, "AttnBlock3DFix": AttnBlock3DFix}
DOWNSAMPLES = {
    "Downsample": Downsample,
    "SpatialDownsample2x": SpatialDownsample2x,
    "Spatial2xTime2x3DDownsample": Spatial2xTime2x3DDownsample,
    "TimeDownsample2x": TimeDownsample2x,
}
UPSAMPLES = {
    "SpatialUpsample2x": SpatialUpsample2x,
    "Spatial2xTime2x3DUpsample": Spatial2xTime2x3DUpsample,
    "TimeUpsample2x": TimeUpsample2x,
}


def pick(kinds: Mapping[str, type[Any]], name: str, option: str) -> type[Any]:
    """The block class called ``name``.

    Raises:
        CheckpointError: ``name`` is none of ``kinds``.
    """
    if name not in kinds:
        known = ", ".join(sorted(kinds))
        raise CheckpointError(f"VAE config: {option} names {name!r}; known blocks are {known}")
    return kinds[name]


def make_conv(
    name: str, in_channels: int, out_channels: int, kernel: int, option: str
) -> nn.Module:
    """A "same" convolution of the named kind, ``CausalConv3d`` or per-frame ``Conv2d``."""
    kind = pick({"CausalConv3d": CausalConv3d, "Conv2d": FrameConv2d}, name, option)
    return kind(in_channels, out_channels, kernel, padding=kernel // 2)
